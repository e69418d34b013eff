"""A loaded model answering questions about images, plain or with a recipe, one at a time or many at once.

Speed comes from not computing twice: an image asked about several times is encoded and prefilled once, and a sweep over
recipes that only touch the last position shares the whole prompt but its last token.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vlmsteer import decoding, grids, prefixes
from vlmsteer.actions import Compiled, compile_rules
from vlmsteer.adapters.family import Family
from vlmsteer.errors import InputError, ModelError, RecipeError, SiteError, did_you_mean
from vlmsteer.hooks import Instrument
from vlmsteer.images import open_image
from vlmsteer.prefixes import Begun, Prefixes
from vlmsteer.prompts import Encoded, Encoder, Layout
from vlmsteer.recipe import Recipe
from vlmsteer.runs import Enough, Prompt, Run
from vlmsteer.sites import Site, expand
from vlmsteer.states import Sink, States
from vlmsteer.streams import Prefilled, Stream, greedy
from vlmsteer.tokens import OF_ROWS, PHASES, Positions, check_positions
from vlmsteer.vectors import PerQuestion

Recipes = Recipe | Sequence[Recipe | None] | None


class Session:
    """One model with its processor. Make one with `vlmsteer.load`.

    Attributes:
        name: as given to `load`.
        family: the family's declaration.
        sites: every site of the model, in network order.
        prefixes: what is kept of images that were asked about; `prefixes.limit` says how much.
    """

    def __init__(self, model: Any, processor: Any, name: str, family: Family, revision: str | None = None) -> None:
        self.model, self.processor, self.name, self.family, self.revision = model, processor, name, family, revision
        self.taps = family.taps(model)
        self.sites = list(self.taps)
        self.encoder = Encoder(processor, model.config, family)
        self.instrument = Instrument(model, self.taps, family, self.encoder.image_token)
        self.prefixes = Prefixes()
        self._compiled, self._shapes = Compiled(), ""
        end = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
        end = self.tokenizer.eos_token_id if end is None else end
        ends = end if isinstance(end, list) else [] if end is None else [end]
        self.ends = torch.tensor(ends, dtype=torch.long, device=self.device)
        # Weights that are fetched when they are needed are there for one forward at a time.
        self._fetched = any(weight.is_meta for weight in model.parameters())
        self._turn = threading.RLock() if self._fetched else nullcontext()

    @property
    def device(self) -> torch.device:
        """Where inputs go; in a model that is split over devices, the first weights may be elsewhere or on the disk."""
        place = getattr(getattr(self.model, "_hf_hook", None), "execution_device", None)
        return self.model.device if place is None else torch.device(place)

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    def layers(self, tower: str = "text") -> int:
        """How many layers a tower has."""
        return 1 + max((site.layer for site in self.sites if site.tower == tower), default=-1)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What a recipe remembers of its model: id, revision, class, and a hash of all its sites with their widths."""
        if not self._shapes:
            shapes = [f"{site} {tap.width}" for site, tap in self.taps.items()]
            shapes.append(f"vocabulary {self.model.config.text_config.vocab_size}")
            self._shapes = hashlib.sha256("\n".join(shapes).encode()).hexdigest()[:16]
        return {
            "id": self.name,
            "revision": self.revision,
            "architecture": type(self.model).__name__,
            "shapes": self._shapes,
        }

    def check(self, recipes: Recipes) -> None:
        """Refuse recipes made for another model, and rules for the words of one that has none.

        Raises:
            RecipeError: if one was; `recipe.for_any_model()` lifts this for models that should share directions.
        """
        own: dict[str, Any] | None = None
        for recipe in [recipes] if recipes is None or isinstance(recipes, Recipe) else recipes:
            if recipe is not None and self.family.silent and any(rule.strength for rule in recipe.rules):
                raise RecipeError(f"Rules choose words, and {self.name!r} says none: take a recipe without them.")
            if recipe is None or not recipe.model:
                continue
            own = own or self.fingerprint
            for key, word in (
                ("architecture", "class"),
                ("shapes", "shape fingerprint"),
                ("id", "model"),
                ("revision", "revision"),
            ):
                if recipe.model.get(key) != own[key]:
                    raise RecipeError(
                        f"This recipe was made for {recipe.model.get('id')}: its {word} is {recipe.model.get(key)!r}, "
                        f"that of the loaded model {own[key]!r}."
                    )

    @contextmanager
    def read(
        self,
        patterns: str | Site | Sequence[str | Site],
        positions: Positions = "last",
        phase: str = "prefill",
        grad: bool = False,
        into: Sink | None = None,
    ) -> Iterator[States]:
        """Collect the states at some sites of every forward inside the block.

        Args:
            patterns: sites such as "text.*.block_out".
            positions: which tokens (`tokens.POSITIONS` or indices).
            phase: "prefill", "decode" or "both".
            grad: keep the graph; the tensors of `states.rows(site)` then lie on the way to the output, so that
                `torch.autograd.grad(logits, states.rows(site))` is defined.
            into: takes in what is read, site by site, so that nothing is collected (`states.States`).

        Raises:
            SiteError: if a site or the positions do not exist.
        """
        sites = expand(patterns, self.sites)
        if phase not in PHASES:
            raise SiteError(f"There is no phase {phase!r}{did_you_mean(phase, PHASES)}")
        states = States(sites, check_positions(positions), phase, self.taps, grad, into)
        run = Run(states=states)
        with self.instrument.installed(run.sites), self.instrument.active(run):
            yield states

    @contextmanager
    def apply(self, recipes: Recipes) -> Iterator[None]:
        """Let a recipe, or one for each row, act on every forward inside the block, also on direct calls of the model.

        Raises:
            RecipeError: if a recipe was made for another model.
            SiteError: if it names a site that this model does not have.
        """
        run = self.ready(recipes)
        with self.instrument.installed(run.sites), self.instrument.active(run):
            yield

    def ready(self, recipes: Recipes, owners: Sequence[int] = (), prompt: Prompt | None = None) -> Run:
        """What `recipes` mean for this model; `owners` has -1 for rows that show no image."""
        self.check(recipes)
        listed = [recipes] * len(owners) if recipes is None or isinstance(recipes, Recipe) else recipes
        for row, (recipe, owner) in enumerate(zip(listed, owners, strict=False)):
            if (
                recipe
                and owner < 0
                and any(edit.vectors.tower not in OF_ROWS and edit.strength for edit in recipe.edits)
            ):
                raise SiteError(f"Row {row} shows no image, so its recipe cannot edit how one is seen.")
        actions, rows = self._compiled(self.taps, recipes)
        return Run(actions, rows, prompt=prompt, rules=compile_rules(recipes, self.layers()))

    def check_words(self) -> None:
        """Refuse to answer in words where the model has none.

        Raises:
            ModelError: if it has none.
        """
        if self.family.silent:
            raise ModelError(f"{self.name!r} is a {self.family.name}, without words. {self.family.silent}")

    def settle(self, recipes: Recipes, images: Sequence[Image.Image | str | None], questions: Sequence[str]) -> Recipes:
        """The recipes with the vectors that some make from each question, and then one for each row."""
        listed = [recipes] * len(questions) if recipes is None or isinstance(recipes, Recipe) else list(recipes)
        rows = [row for row, recipe in enumerate(listed) if recipe is not None and recipe.per_question]
        if not rows:
            return recipes
        self.check(recipes)
        edits = [edit for row in rows for edit in listed[row].edits if isinstance(edit.vectors, PerQuestion)]  # pyright: ignore[reportOptionalMemberAccess]
        sites = sorted({
            Site(edit.vectors.tower, layer, edit.vectors.read_point)  # pyright: ignore[reportAttributeAccessIssue]
            for edit in edits for layer in edit.vectors.layers
        })  # fmt: skip
        asked = [questions[row] for row in rows]
        read = []
        with self.instrument.alone():
            for shown in ([images[row] for row in rows], [None] * len(rows)):
                with self.read(sites) as states:
                    self.run(shown, asked)
                read.append({site: states[site] for site in sites})
        for i, row in enumerate(rows):
            settled = []
            for edit in listed[row].edits:  # pyright: ignore[reportOptionalMemberAccess]
                own = edit.vectors
                if isinstance(own, PerQuestion):
                    if images[row] is None:  # nothing was added; what rounding leaves is no direction
                        continue
                    places = {layer: Site(own.tower, layer, own.read_point) for layer in own.layers}
                    found = {at: (read[0][site][i] - read[1][site][i]).float().cpu() for at, site in places.items()}
                    edit = replace(edit, vectors=own.of(found))
                settled.append(edit)
            listed[row] = replace(listed[row], edits=tuple(settled))  # pyright: ignore[reportArgumentType]
        return listed[0] if isinstance(recipes, Recipe) and len(listed) == 1 else listed

    def ask(
        self,
        image: Image.Image | str | None,
        question: str,
        recipe: Recipe | None = None,
        max_new_tokens: int = 48,
        **generation: Any,
    ) -> str:
        """The model's answer, greedy unless `generation` (transformers' generate arguments) says otherwise.

        Raises:
            InputError: if the image or the question cannot be used.
            ModelError: if the model does not answer in words.
        """
        self.check_words()
        if not generation:
            return self.ask_many([image], [question], recipe, max_new_tokens)[0]
        with decoding.processors(self, image, question, recipe) as processors:
            if processors:
                generation["logits_processor"] = [*processors, *(generation.get("logits_processor") or ())]
            settled = self.settle(recipe, [image], [question])
            encoded = self.encoder.encode([image], [question])
            layout = encoded.whole(self.device)
            run = self.ready(settled, encoded.owners, layout.prompt)
            with self.instrument.installed(run.sites), self.instrument.active(run), torch.no_grad(), self._turn:
                tokens = self.family.generate(self.model, layout.inputs, max_new_tokens=max_new_tokens, **generation)
        return self.encoder.decode(tokens[0, layout.positions.shape[1] :])

    def stream(
        self, image: Image.Image | str | None, question: str, recipe: Recipe | None = None, max_new_tokens: int = 48
    ) -> Iterator[str]:
        """The answer so far, after each token. Closing the generator stops the model; nothing is left behind."""
        self.check_words()
        if recipe is not None and recipe.decoding:
            yield from map(self.encoder.decode, decoding.stream(self, image, question, recipe, max_new_tokens))
            return
        written: list[int] = []
        with self.opened([image], [question], recipe) as stream:
            for tokens in greedy(stream, max_new_tokens):
                written.append(int(tokens[0]))
                yield self.encoder.decode(torch.tensor(written))

    @contextmanager
    def opened(
        self,
        images: Sequence[Image.Image | str | None],
        questions: Sequence[str],
        recipes: Recipes = None,
        encoded: Encoded | None = None,
        keep: bool = True,
    ) -> Iterator[Stream]:
        """Prompts read as one batch, for a decoding loop of the caller's; rules of decoding do not act in it.

        Args:
            encoded: read in place of the prompts where these have been encoded, and changed, before.
            keep: whether these images may come again, so that what is made of them is looked up and kept.
        """
        encoded = encoded or self.encoder.encode(images, questions)
        recipes = self.settle(recipes, images, questions)
        run = self.ready(recipes, encoded.owners)
        with self.instrument.installed(run.sites):
            prefilled, run = self._read_prompt(encoded, recipes, run, keep)
            yield Stream(self, prefilled, run)

    def ask_many(
        self,
        images: Sequence[Image.Image | str | None],
        questions: Sequence[str],
        recipes: Recipes = None,
        max_new_tokens: int = 48,
        batch_size: int = 32,
    ) -> list[str]:
        """Answers to many questions, in order; `recipes` is one for all, or one (or None) for each question."""
        if len(images) != len(questions) or not (
            recipes is None or isinstance(recipes, Recipe) or len(recipes) == len(images)
        ):
            raise InputError("There must be as many images, questions and (if not one for all) recipes.")
        self.check_words()
        answers: list[str] = []
        for first in range(0, len(questions), batch_size):
            rows = slice(first, first + batch_size)
            part = recipes if recipes is None or isinstance(recipes, Recipe) else recipes[rows]
            listed = [part] if part is None or isinstance(part, Recipe) else part
            if any(recipe is not None and recipe.decoding for recipe in listed):
                answers += decoding.answers(self, images[rows], questions[rows], part, max_new_tokens)
                continue
            with self.opened(images[rows], questions[rows], part) as stream:
                answers += self._decode(torch.stack(list(greedy(stream, max_new_tokens)), 1))
        return answers

    def ask_grid(
        self,
        images: Sequence[Image.Image | str | None],
        questions: Sequence[str],
        recipes: Sequence[Recipe | None],
        max_new_tokens: int = 48,
        batch_size: int = 32,
        cells: int = 512,
    ) -> list[list[str]]:
        """Every question under every recipe: answers[question][recipe].

        Recipes that only touch the last position share one prefill of the prompt; then each (question, recipe) is a row
        of single-token passes, at most `cells` rows at once. Other recipes are run one after the other.
        """
        self.check_words()
        return grids.answers(self, images, questions, list(recipes), max_new_tokens, batch_size, cells)

    def sweep(
        self,
        images: Sequence[Image.Image | str | None],
        questions: Sequence[str],
        recipe: Recipe,
        strengths: Sequence[float],
        layers: Sequence[int] | None = None,
        max_new_tokens: int = 0,
        batch_size: int = 32,
        cells: int = 512,
    ) -> grids.Sweep:
        """One recipe in each of some layers of the text tower alone, at each of some strengths.

        A recipe of the last position takes one prefill, then a row of a single-token pass for each cell.

        Args:
            layers: by default all that the recipe edits.
            max_new_tokens: of answers; with 0 there are next-token logits instead.
            cells: how many (question, layer, strength) are computed at once; less needs less memory.

        Raises:
            InputError: if there are no layers or strengths, or not as many images as questions.
            RecipeError: if the recipe has rules, or does not edit a layer.
        """
        return grids.sweep(self, images, questions, recipe, strengths, layers, max_new_tokens, batch_size, cells)

    def logits(
        self,
        images: Sequence[Image.Image | str | None],
        questions: Sequence[str],
        recipes: Recipes = None,
        grad: bool = False,
    ) -> Tensor:
        """(rows, vocabulary) next-token logits after each prompt, as one batch; a rule that contrasts acts on them."""
        plain = self.run(images, questions, recipes=recipes, grad=grad)[:, -1]
        return decoding.logits(self, plain, images, questions, recipes)

    def run(
        self,
        images: Sequence[Image.Image | str | None],
        questions: Sequence[str],
        answers: Sequence[str] | None = None,
        recipes: Recipes = None,
        keep: int = 1,
        grad: bool = False,
    ) -> Tensor:
        """One forward over the prompts, as one batch, for what a `read` block collects or for its last logits.

        Args:
            answers: what follows each prompt, as if the model had generated it.
            keep: how many of the last columns logits are wanted of; shorter answers are padded on the right. If none,
                the forward ends after the last site that open `read` blocks ask for.

        Returns:
            (rows, keep, vocabulary).
        """
        if answers is not None:
            self.check_words()
        encoded = self.encoder.encode(images, questions, answers)
        if not (recipes is None or isinstance(recipes, Recipe) or len(recipes) == len(images)):
            raise SiteError(f"There are recipes for {len(recipes)} rows, but the batch has {len(images)}.")
        return self._run_whole(encoded, self.settle(recipes, images, questions), keep, grad)

    def _run_whole(self, encoded: Encoded, recipes: Recipes, keep: int, grad: bool = False) -> Tensor:
        run = self.ready(recipes, encoded.owners)
        if not keep and not self._fetched:  # weights that are fetched must also be brought back
            run = replace(run, end=self.instrument.last_read())
        with self.instrument.installed(run.sites):
            if keep:
                begun = Begun(prefixes.seen(self, encoded, recipes, encoded.whole(self.device), run))
            else:
                begun = prefixes.begin(self, encoded, recipes, run, keep=False)
            run = replace(run, prompt=begun.layout.prompt)
            begun.layout.inputs["logits_to_keep"] = max(keep, 1)  # pyright: ignore[reportArgumentType]
            try:
                outputs = self.forward(begun.layout, run, begun.cache, grad, use_cache=begun.cache is not None)
            except Enough:
                return torch.empty(len(encoded.rows), 0, self.model.config.get_text_config().vocab_size)
        return outputs.logits[:, outputs.logits.shape[1] - keep :].to(self.device)

    def score(
        self,
        images: Sequence[Image.Image | str | None],
        questions: Sequence[str],
        answers: Sequence[str],
        recipes: Recipes = None,
        batch_size: int = 16,
    ) -> list[Tensor]:
        """For each row the log-probabilities (tokens,) of its answer's tokens, each given those before it."""
        if len({len(images), len(questions), len(answers)}) > 1 or not (
            recipes is None or isinstance(recipes, Recipe) or len(recipes) == len(images)
        ):
            raise InputError("There must be as many images, questions, answers and (if not one for all) recipes.")
        self.check_words()
        scores: list[Tensor] = []
        for first in range(0, len(questions), batch_size):
            rows = slice(first, first + batch_size)
            encoded = self.encoder.encode(images[rows], questions[rows], answers[rows])
            part = recipes if recipes is None or isinstance(recipes, Recipe) else recipes[rows]
            part = self.settle(part, images[rows], questions[rows])
            longest = max(len(row.answer) for row in encoded.rows)
            logits = self._run_whole(encoded, part, longest + 1).float().log_softmax(-1)
            for row, known in zip(encoded.rows, logits, strict=True):
                count = len(row.answer)
                scores.append(known[:count].gather(1, row.answer.to(known.device)[:, None])[:, 0])
        return scores

    def forward(self, layout: Layout, run: Run, cache: Any, grad: bool = False, use_cache: bool = True) -> Any:
        """One forward of the model with what `run` does; its hooks must be installed."""
        with self.acting(run, grad):
            return self.family.call(self.model, dict(layout.inputs), layout.positions, cache, use_cache)

    @contextmanager
    def acting(self, run: Run, grad: bool = False) -> Iterator[None]:
        """What `run` does acts on calls of the model, or of parts of it; its hooks must be installed."""
        with self.instrument.active(run), torch.set_grad_enabled(grad), self._turn:
            yield

    def prefill(self, layout: Layout, run: Run, past: Any = None, grad: bool = False, cache: bool = True) -> Prefilled:
        """Tokens read after those that `past` holds; the hooks of `run` must be installed."""
        outputs = self.forward(layout, replace(run, prompt=layout.prompt), past, grad, cache)
        mask, position = layout.inputs["attention_mask"], layout.positions[:, -1:]
        return Prefilled(outputs.logits[:, -1].to(self.device), outputs.past_key_values, mask, position)

    def _read_prompt(self, encoded: Encoded, recipes: Recipes, run: Run, keep: bool = True) -> tuple[Prefilled, Run]:
        """Prefill what has not been read before."""
        alone = not keep and len(encoded.images) == len(encoded.rows)
        begun = Begun(encoded.whole(self.device)) if alone else prefixes.begin(self, encoded, recipes, run, keep)
        prefilled = self.prefill(begun.layout, run, begun.cache)
        begun.keep(self.prefixes, prefilled.cache)
        return prefilled, replace(run, prompt=begun.layout.prompt)

    def _decode(self, tokens: Tensor) -> list[str]:
        return [self.encoder.decode(row) for row in tokens]

    def boxes(self, image: Image.Image | str) -> Tensor:
        """(image tokens, 4): the part of the image that each of its tokens in the prompt shows.

        A box is (left, top, right, bottom) as fractions of the image; that of a token which ends a row is NaN.

        Raises:
            SiteError: if this family's image tokens are no cells of a grid.
        """
        if self.family.boxes is None:
            raise SiteError(f"The image tokens of {self.family.name} are no cells of a grid over the image.")
        opened = open_image(image)
        read = self.encoder.encode([opened], ["?"]).images[0]
        return self.family.boxes(self.model.config, self.processor, opened.size, read)

    def unembed(self, states: Tensor) -> Tensor:
        """(..., vocabulary) logits of residual states (..., width), the final norm applied exactly once.

        Raises:
            SiteError: if the states are not of the tower that answers.
        """
        norm, head = self.family.ending(self.model)
        tower = self.family.answers
        width = self.taps[Site(tower, self.layers(tower) - 1, "block_out")].width
        if states.shape[-1] != width:
            raise SiteError(f"The answer is read from {tower} states, of width {width}, not {states.shape[-1]}.")
        with self._turn, self.instrument.alone():
            normed = norm(beside(norm, states)) * self.family.logit_scale(self.model.config)
            return head(beside(head, normed))


def beside(module: Any, states: Tensor) -> Tensor:
    """States on the device of a module's weights, unless these are fetched when the module is called."""
    weight = next(module.parameters(), None)
    return states if weight is None or weight.is_meta else states.to(weight.device)
