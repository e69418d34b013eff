"""The shape of the project: which module may import which, what a wheel holds, what may lie in which folder."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = (  # a module may import from its own line and from the lines above it
    {"errors", "registry", "images", "bundled", "running", "samples", "examples", "remembered"},
    {"probes", "perceptron", "subspaces"},
    {"sites", "tokens", "operations", "recipe", "vectors"},
    {"actions"},
    {"states"},
    {"runs"},
    {"forwards"},
    {"gating"},
    {"hooks"},
    {"adapters", "prompts"},
    {"session", "prefixes", "grids", "branches", "streams", "decoding", "openvla", "pi0"},
    {"selfcheck", "reading", "export"},
    {"loading"},
    {"lens", "methods"},
    {"bench", "plugins", "report", "training", "demo"},
    {"console"},
    {
        "cli",
        "counterfacts_cli",
        "recipe_cli",
        "methods_cli",
        "evidence_cli",
        "patch_cli",
        "score_cli",
        "bench_cli",
        "__main__",
    },
)
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}
COUNTERFACTS_MAY_IMPORT = {"errors", "images"}


def imported(source: str, package: str, top_modules: set[str]) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything `source`, a module of the dotted `package`, imports, inside functions too.

    `from vlmsteer import x` gives `vlmsteer.x` if x is one of `top_modules`, and plain `vlmsteer` for an attribute.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *([base] if base else [])])
            for alias in node.names:
                # The version is there before any module of ours is imported; other attributes need the session.
                if base == "vlmsteer" and alias.name != "__version__":
                    yield node.lineno, f"vlmsteer.{alias.name}" if alias.name in top_modules else "vlmsteer"
                elif base != "vlmsteer":
                    yield node.lineno, base


def wrong_imports(root: Path) -> list[str]:
    """A sentence for each import under `root` that goes against the order."""
    package = root / "vlmsteer"
    modules = {p.stem for p in package.glob("*.py")} | {p.name for p in package.iterdir() if any(p.glob("*.py"))}
    wrong = [
        f"vlmsteer/{name} has no place in the import order: give it one in ORDER, tests/test_packaging.py"
        for name in sorted(modules - {"__init__"} - set(LEVEL))
    ]
    known = set(LEVEL) | modules
    for top in ("vlmsteer", "counterfacts/vlmsteer_counterfacts", "robotics/vlmsteer_robotics", "ui/vlmsteer_ui"):
        for path in sorted((root / top).rglob("*.py")):
            inside = path.relative_to((root / top).parent)
            where = path.relative_to(root)
            owner = inside.parts[0]
            for line, name in imported(path.read_text(encoding="utf-8"), ".".join(inside.parent.parts), known):
                target, _, rest = name.partition(".")
                if (target == "vlmsteer_ui" and owner != target) or (
                    target == "vlmsteer_robotics" and owner not in (target, "vlmsteer_ui")
                ):
                    wrong.append(f"{where}:{line} imports {target}, which nothing below it may do")
                if target != "vlmsteer":
                    continue
                module = rest.partition(".")[0]
                if owner == "vlmsteer_counterfacts" and module not in COUNTERFACTS_MAY_IMPORT:
                    wrong.append(f"{where}:{line} imports {name}; of vlmsteer it may import only errors and images")
                if owner == "vlmsteer" and inside.parts[1] != "__init__.py":
                    own = LEVEL.get(Path(inside.parts[1]).stem)
                    needs = LEVEL.get(module or "session")
                    if own is not None and needs is not None and needs > own:
                        wrong.append(f"{where}:{line} imports {name}, which comes later in the import order")
    return wrong


def test_imports_go_one_way() -> None:
    assert wrong_imports(ROOT) == []


@pytest.mark.parametrize(
    ("file", "code", "complaint"),
    [
        ("vlmsteer/hooks.py", "from vlmsteer.session import Session", "comes later"),
        ("vlmsteer/recipe.py", "def f():\n    from vlmsteer import cli", "comes later"),
        ("vlmsteer/sites.py", "import vlmsteer", "comes later"),
        ("vlmsteer/adapters/llava.py", "from ..lens import logit", "comes later"),
        ("vlmsteer/adapters/llava.py", "from .. import session", "comes later"),
        ("vlmsteer/magic.py", "", "give it one in ORDER"),
        ("vlmsteer/cli.py", "import vlmsteer_ui.app", "vlmsteer_ui"),
        ("counterfacts/vlmsteer_counterfacts/draw.py", "from vlmsteer import recipe", "only errors and images"),
        ("counterfacts/vlmsteer_counterfacts/draw.py", "import vlmsteer", "only errors and images"),
    ],
)
def test_an_import_against_the_order_is_found(tmp_path: Path, file: str, code: str, complaint: str) -> None:
    (tmp_path / "vlmsteer").mkdir()
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code)
    (sentence,) = wrong_imports(tmp_path)
    assert complaint in sentence


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("vlmsteer/hooks.py", "from vlmsteer.recipe import Recipe\nfrom vlmsteer import __version__"),
        ("vlmsteer/adapters/llava.py", "from . import qwen_vl\nfrom ..hooks import Hooks\nimport torch"),
        ("vlmsteer/cli.py", "import vlmsteer\nfrom vlmsteer import load, bench"),
        ("vlmsteer/__init__.py", "def load():\n    from vlmsteer.session import load"),
        ("counterfacts/vlmsteer_counterfacts/draw.py", "from vlmsteer.errors import InputError\nfrom . import paint"),
    ],
)
def test_an_import_along_the_order_passes(tmp_path: Path, file: str, code: str) -> None:
    (tmp_path / "vlmsteer").mkdir()
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code)
    assert wrong_imports(tmp_path) == []


def test_import_vlmsteer_is_light(tmp_path: Path) -> None:
    code = "import sys, vlmsteer; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    assert python(code, cwd=tmp_path, path=[ROOT, ROOT / "counterfacts"]) == "[]"


def test_datasets_holds_no_python() -> None:
    assert list((ROOT / "datasets").rglob("*.py")) == []


def test_bundled_files_are_small() -> None:
    files = [p for p in (ROOT / "vlmsteer" / "bundled").rglob("*") if p.is_file()]
    assert [f"{p.name}: {p.stat().st_size} bytes" for p in files if p.stat().st_size > 10_000_000] == []


def test_wheel_installs_our_packages_and_nothing_else(tmp_path: Path) -> None:
    site = tmp_path / "site"
    build = ["build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run([sys.executable, "-m", *build], check=True, capture_output=True, text=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    dist_info = {name for name in names if name.endswith(".dist-info")}
    assert len(dist_info) == 1
    assert names - dist_info == {"vlmsteer", "vlmsteer_counterfacts", "vlmsteer_robotics", "vlmsteer_ui"}

    install = ["pip", "install", "-q", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run([sys.executable, "-m", *install], check=True, capture_output=True, text=True)
    code = (
        "import vlmsteer\n"
        "from vlmsteer_counterfacts import facts\n"
        "print(vlmsteer.__file__, facts.__file__, facts.PACKAGED.is_file(), len(facts.facts()), sep='\\n')"
    )
    ours, table, packaged, count = python(code, cwd=tmp_path, path=[site]).splitlines()
    # An editable install beside it must not have answered in the wheel's place.
    assert Path(ours).is_relative_to(site) and Path(table).is_relative_to(site)
    assert packaged == "True"
    assert int(count) == len((ROOT / "datasets" / "objects.jsonl").read_text(encoding="utf-8").splitlines()) == 44


def test_editable_install_maps_the_packages_alone(tmp_path: Path) -> None:
    """The root on sys.path would offer our `datasets/` as Hugging Face's; a copied file would hide our package."""
    code = f"from hatchling.build import build_editable; build_editable({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert sorted(names) == ["_editable_impl_vlmsteer.pth", "_editable_impl_vlmsteer.py"]
    start_up = zipfile.ZipFile(wheel).read("_editable_impl_vlmsteer.py").decode()
    code = (
        f"{start_up}\n"
        "import sys, vlmsteer, vlmsteer_counterfacts.facts as f, vlmsteer_robotics as r, vlmsteer_ui as u\n"
        f"print(vlmsteer.__file__, f.__file__, r.__file__, u.__file__, {str(ROOT)!r} in sys.path, sep='\\n')"
    )
    mapped = python(code, cwd=tmp_path, path=[]).splitlines()
    expected = [
        ROOT / "vlmsteer" / "__init__.py",
        ROOT / "counterfacts" / "vlmsteer_counterfacts" / "facts.py",
        ROOT / "robotics" / "vlmsteer_robotics" / "__init__.py",
        ROOT / "ui" / "vlmsteer_ui" / "__init__.py",
    ]
    assert mapped == [*map(str, expected), "False"]


def test_no_file_names_a_registry_or_a_private_folder() -> None:
    """A lock file or a log copied from somebody's machine would send others to hosts and folders they do not have."""
    words = [
        "pypi" + ".org", "files.python" + "hosted.org", "registry.npm" + "js.org", "deb.deb" + "ian.org",
        "download.py" + "torch.org", "/wor" + "k/",
    ]  # fmt: skip
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: no list of the project's files")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split("\0")  # fmt: skip
    found = []
    for name in filter(None, listed):
        path = ROOT / name
        content = path.read_bytes() if path.is_file() else b""
        if b"\0" not in content[:8192]:
            found += [f"{name}: {word}" for word in words if word.encode() in content]
    assert found == []


def python(code: str, cwd: Path, path: list[Path]) -> str:
    """What a fresh interpreter prints, with only `path` in PYTHONPATH."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
