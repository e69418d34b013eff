"""A forward ends after the last site that is read, images are read once, and nothing of that shows in what is read."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from engine_recipes import QUESTIONS, both, flags, hooks, recipe
from PIL import Image

from vlmsteer import reading
from vlmsteer.errors import InputError, SiteError
from vlmsteer.prefixes import Prefixes
from vlmsteer.running import Components, Covariance, Difference, Largest, Mean
from vlmsteer.sites import Site

Pictures = list[Image.Image]
ASKED = [*QUESTIONS, "And this one, then?"]


def shown(pictures: Pictures) -> list[Any]:
    return [pictures[0], pictures[1], pictures[0], pictures[2]]


def near(session: Any, states: torch.Tensor) -> dict[str, Any]:
    return {
        "atol": max(5e-4 if session.encoder.start is not None else 1e-4, 1e-5 * float(states.abs().max())),
        "rtol": 1e-4,
    }


def test_every_site_before_the_end(everyone: Any, pictures: Pictures) -> None:
    """Each site, asked for alone, is what it is in a whole forward; no module behind it is called."""
    sites = [site for site in everyone.sites if site.tower != "expert"]
    with everyone.read(everyone.sites, "all") as whole:
        everyone.run(pictures[:2], QUESTIONS[:2])
    before = hooks(everyone.model), flags(everyone.model)
    called: list[bool] = []
    handle = everyone.instrument._unembedding.register_forward_pre_hook(lambda *given: called.append(True))
    try:
        for site in sites[:: max(1, len(sites) // 12)] + sites[-1:]:
            with everyone.read(site, "all") as states:
                nothing = everyone.run(pictures[:2], QUESTIONS[:2], keep=0)
            assert nothing.shape[:2] == (2, 0) and not called
            for one, other in zip(states.rows(site), whole.rows(site), strict=True):
                torch.testing.assert_close(one, other, **near(everyone, other))
    finally:
        handle.remove()
    assert (hooks(everyone.model), flags(everyone.model)) == before
    with everyone.read(sites[-1], "all") as again:
        everyone.run(pictures[:2], QUESTIONS[:2])
    assert all(torch.equal(one, other) for one, other in zip(again.rows(sites[-1]), whole.rows(sites[-1]), strict=True))


def test_nested_blocks_all_get_theirs(llava: Any, pictures: Pictures) -> None:
    """The outermost block may want the deepest layer; a stopped thread stops nobody else's forward."""
    plain = llava.logits(pictures, QUESTIONS)
    with llava.read("text.2.block_out", "all") as outer, llava.read("vision.0.block_out", "all") as inner:
        llava.run(pictures, QUESTIONS, keep=0)
        assert torch.equal(llava.logits(pictures, QUESTIONS), plain)  # who needs logits gets them
    assert len(outer.rows("text.2.block_out")) == len(inner.rows("vision.0.block_out")) == 6
    stop, wrong = threading.Event(), []

    def churn() -> None:
        while not stop.is_set():
            with llava.read("text.0.block_out") as states:
                llava.run(pictures[:1], QUESTIONS[:1], keep=0)
            wrong.extend([1] if len(states.rows("text.0.block_out")) != 1 else [])

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(5):
            assert torch.equal(llava.logits(pictures, QUESTIONS), plain)
    finally:
        stop.set()
        thread.join()
    assert not wrong and not llava.instrument.busy


def test_without_readers_nothing_ends(llava: Any, pictures: Pictures) -> None:
    """Other people's hooks see the whole forward; edits and exceptions leave as they came."""
    seen: list[int] = []
    last = llava.taps[Site("text", llava.layers() - 1, "block_out")].module
    handle = last.register_forward_hook(lambda *given: seen.append(1))
    try:
        llava.run(pictures, QUESTIONS, keep=0)
    finally:
        handle.remove()
    assert seen == [1]
    before = hooks(llava.model)
    with pytest.raises(SiteError), llava.read("text.1.block_out", (200,)):
        llava.run(pictures, QUESTIONS, keep=0)
    assert hooks(llava.model) == before and not llava.instrument.busy


def test_late_reads_share_images(anyone: Any, pictures: Pictures) -> None:
    """Questions about one image read its beginning once, with answers and recipes or without, to the same states."""
    images, sites = shown(pictures), ["text.0.block_out", f"text.{anyone.layers() - 1}.block_out"]
    late = recipe(anyone, "text.0.block_out", size=1.5)
    early = recipe(anyone, "text.0.mlp_out", positions="all", size=0.5, seed=2)
    for answers in (None, ["red", "red, green", "small", "large red"]):
        for steer in (None, late, early, [late, None, early, late]):
            with anyone.read(sites, "last", phase="prefill" if answers is None else "both") as whole:
                anyone.run(images, ASKED, answers, steer)
            ((_, states),) = reading.batches(anyone, sites, images, ASKED, answers, "last", steer)
            for site in whole.sites:
                for one, other in zip(states.rows(site), whole.rows(site), strict=True):
                    torch.testing.assert_close(one, other, **near(anyone, other))


@pytest.mark.parametrize("positions", ["last", "image", "question", "all"])
def test_reduced_in_the_hook(positions: str, session: Any, pictures: Pictures) -> None:
    """Means over rows in any batches, order and sharing are those of collected states."""
    images, sites = shown(pictures), ["text.1.block_out", "text.2.head"]
    with session.read(sites, positions) as whole:
        session.run(images, ASKED)
    for steer, size in ((None, 2), (recipe(session, "text.0.block_out", size=1.5), 16)):
        if steer is not None:
            with session.read(sites, positions) as whole:
                session.run(images, ASKED, recipes=steer)
        found = reading.reduce(session, sites, images, ASKED, positions=positions, recipe=steer, batch_size=size)
        for site in whole.sites:
            rows = torch.stack([row.float().mean(0) for row in whole.rows(site)])
            torch.testing.assert_close(found[site].mean.float(), rows.mean(0), atol=1e-4, rtol=1e-4)
            assert found[site].weight == 4


def test_what_is_given_goes_with_its_row(llava: Any, pictures: Pictures) -> None:
    images, site = shown(pictures), Site("text", 1, "block_out")
    with llava.read(site) as states:
        llava.run(images, ASKED)
    rows, marks = states[site], torch.tensor([True, False, False, True])
    of = {"images": images, "questions": ASKED, "batch_size": 3}
    found = reading.reduce(llava, site, **of, into=Difference, given=marks)[site].difference
    torch.testing.assert_close(found.float(), rows[marks].mean(0) - rows[~marks].mean(0), atol=1e-4, rtol=1e-4)
    most = reading.reduce(llava, site, **of, into=lambda: Largest(2), given=torch.arange(4))[site]
    values, numbers = rows.topk(2, 0)
    torch.testing.assert_close(most.values, values, atol=1e-4, rtol=1e-4)
    assert torch.equal(most.rows, numbers)
    spread = reading.reduce(llava, site, **of, into=Covariance)[site].covariance
    torch.testing.assert_close(spread.float(), rows.T.cov(), atol=1e-3, rtol=1e-3)
    assert reading.reduce(llava, site, **of, into=Components)[site].count == 4
    assert reading.reduce(llava, site, [], [], into=Mean)[site].weight == 0
    with pytest.raises(InputError, match="3 things given for 4 rows"):
        reading.reduce(llava, site, **of, given=torch.arange(3))


def test_an_image_is_read_once_for_its_means(llava: Any, pictures: Pictures) -> None:
    images, sites, read = shown(pictures), ["text.1.block_out"], []
    handle = llava.taps[llava.sites[0]].module.register_forward_hook(lambda m, given, out: read.append(len(given[0])))
    try:
        found = reading.reduce(llava, sites, images, ASKED, positions="image")
    finally:
        handle.remove()
    assert read == [3] and found[Site.parse(sites[0])].weight == 4


def test_rows_in_order_of_length(session: Any, pictures: Pictures) -> None:
    questions = ["a b c d e f g", "red?", "What color is it?", "a"]
    order = reading.by_length(session, [None, None, pictures[0], pictures[0]], questions)
    assert sorted(order) == [0, 1, 2, 3] and order.index(1) < order.index(0) and order.index(3) < order.index(2)


def entry(size: int) -> tuple[torch.Tensor, ...]:
    return (torch.zeros(size, dtype=torch.uint8),)


def test_prefixes_have_a_limit() -> None:
    kept = Prefixes(100)
    for number in range(6):
        kept.keep((number,), entry(30))
    assert (
        len(kept) == 3 and kept.bytes == 90 and list(kept.known((number,) for number in range(6))) == [(3,), (4,), (5,)]
    )
    kept.known([(3,)])  # used last, so it stays
    kept.keep(("new",), entry(30))
    assert list(kept.known([(3,), (4,), ("new",)])) == [(3,), ("new",)]
    kept.keep(("huge",), entry(101))
    assert not kept.known([("huge",)])
    kept.limit = 30
    assert len(kept) == 1 and kept.bytes == 30
    kept.clear()
    assert kept.bytes == len(kept) == 0
    for wrong in (-1, 1.5, None, True):
        with pytest.raises(InputError, match="number of bytes"):
            kept.limit = wrong  # pyright: ignore[reportAttributeAccessIssue]


def test_a_stream_of_images_stays_within_the_limit(session: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    session.prefixes.clear()
    session.ask(Image.new("RGB", (28, 28)), QUESTIONS[0], max_new_tokens=2)
    one = session.prefixes.bytes
    assert one > 0
    session.prefixes.limit, limit = 3 * one, session.prefixes.limit
    try:
        for _ in range(6):
            pixels = torch.randint(0, 256, (28, 28, 3), generator=generator, dtype=torch.uint8)
            session.ask(Image.fromarray(pixels.numpy()), QUESTIONS[0], max_new_tokens=2)
            assert session.prefixes.bytes <= 3 * one
        assert len(session.prefixes) == 3
    finally:
        session.prefixes.limit = limit


def test_an_image_is_encoded_once(anyone: Any, pictures: Pictures) -> None:
    """For plain and steered questions, whatever the strength, also as another object with the same content."""
    anyone.prefixes.clear()
    read: list[int] = []
    steer = recipe(anyone, "text.1.block_out", size=2.0)
    expected = [anyone.ask(pictures[0], ASKED[i], steer.scaled(i), 5, do_sample=False) for i in range(3)]
    handle = anyone.taps[anyone.sites[0]].module.register_forward_hook(lambda *given: read.append(1))
    try:
        found = [anyone.ask(pictures[0].copy(), ASKED[i], steer.scaled(i), 5) for i in range(3)]
        assert list(anyone.stream(pictures[0], ASKED[2], steer.scaled(2), 5))[-1] == expected[2]
    finally:
        handle.remove()
    assert found == expected
    assert len(read) == 1


def test_what_changes_an_image_is_not_reused(anyone: Any, pictures: Pictures) -> None:
    """Edits of the image or of the vision tower, weights, and other people's hooks: each gives its own answer."""
    image, text = pictures[1], QUESTIONS[0]
    first, second = (
        site for site in anyone.sites if site.tower == "vision" and site.point == "block_out" and site.layer < 2
    )
    steers = [
        None,
        recipe(anyone, str(first), positions="all", size=3.0),
        recipe(anyone, str(first), positions="all", size=3.0).scaled(-1.0),
        recipe(anyone, str(second), positions="all", size=3.0, seed=1),
        both(recipe(anyone, str(first), positions="all", size=3.0), recipe(anyone, "text.1.block_out", size=2.0)),
        recipe(anyone, "text.0.block_out", positions="all", size=2.0),
    ]
    wanted = torch.stack([anyone.logits([image], [text], steer)[0] for steer in steers])

    def asked() -> torch.Tensor:
        found = []
        for steer in steers:
            with anyone.opened([image], [text], steer) as stream:
                found.append(stream.logits[0])
        return torch.stack(found)

    anyone.prefixes.clear()
    for _ in range(3):
        torch.testing.assert_close(asked(), wanted, **near(anyone, wanted))
    with anyone.opened([image] * len(steers), [text] * len(steers), steers) as stream:
        torch.testing.assert_close(stream.logits, wanted, **near(anyone, wanted))
    weight = next(anyone.taps[first].module.parameters())
    with torch.no_grad():
        old = weight.clone()
        weight.mul_(1.5)
    try:
        with anyone.opened([image], [text]) as stream:
            changed = stream.logits[0]
        torch.testing.assert_close(changed, anyone.logits([image], [text])[0], **near(anyone, wanted))
        assert (changed - wanted[0]).abs().max() > 1e-3
    finally:
        with torch.no_grad():
            weight.copy_(old)
    handle = anyone.taps[first].module.register_forward_hook(
        lambda module, given, output: (output[0] * 0, *output[1:]) if isinstance(output, tuple) else output * 0
    )
    try:
        with anyone.opened([image], [text]) as stream:
            assert (stream.logits[0] - wanted[0]).abs().max() > 1e-3
    finally:
        handle.remove()
    torch.testing.assert_close(asked(), wanted, **near(anyone, wanted))


def test_threads_share_prefixes(llava: Any, pictures: Pictures) -> None:
    steers = [None, recipe(llava, "text.0.block_out", positions="image", size=4.0), recipe(llava, "text.1.block_out")]
    wanted = [llava.ask(pictures[0], QUESTIONS[i], steer, 5, do_sample=False) for i, steer in enumerate(steers)]
    llava.prefixes.clear()
    found: dict[int, list[str]] = {i: [] for i in range(3)}

    def work(i: int) -> None:
        for _ in range(4):
            found[i].append(llava.ask(pictures[0], QUESTIONS[i], steers[i], 5))

    threads = [threading.Thread(target=work, args=(i,)) for i in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: [wanted[i]] * 4 for i in found}
