"""The sets that ship with the project are what their configurations give, and every pair in them passes every check."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlmsteer_counterfacts.audit import recheck, statistics
from vlmsteer_counterfacts.build import build, digest
from vlmsteer_counterfacts.clip import load_scorer
from vlmsteer_counterfacts.config import load_config

SETS = Path(__file__).parents[1] / "datasets" / "drawn"


@pytest.mark.parametrize("name", ["color", "size", "presence", "relation"])
def test_a_set_is_rebuilt_to_the_byte(name: str, tmp_path: Path) -> None:
    build(load_config(SETS / f"{name}.toml"), tmp_path / name)
    assert digest(tmp_path / name) == digest(SETS / name)


@pytest.mark.parametrize("name", ["color", "size", "presence", "relation"])
def test_every_pair_passes_every_check(name: str) -> None:
    found = recheck(SETS / name, load_scorer())
    assert found.failed == {} and found.pairs == statistics(SETS / name)["accepted"] > 20
