"""Keyword arguments are typed: the lists for type checkers are the configurations' own fields."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from adarec_fast import ADARec, ADARecConfig
from adarec_fast.models import options
from adarec_fast.models.adarec_on.config import (
    ADARecELCRecConfig,
    ADARecICLRecConfig,
    ADARecIOCRecConfig,
)
from adarec_fast.models.adarec_on.model import ADARecELCRec, ADARecICLRec, ADARecIOCRec
from adarec_fast.models.basrec.config import BASRecConfig
from adarec_fast.models.basrec.model import BASRec
from adarec_fast.models.bert4rec.config import BERT4RecConfig
from adarec_fast.models.bert4rec.model import BERT4Rec
from adarec_fast.models.caser.config import CaserConfig
from adarec_fast.models.caser.model import Caser
from adarec_fast.models.counting.config import CountingConfig, MarkovConfig, PopularityConfig
from adarec_fast.models.counting.model import Counting, Popularity
from adarec_fast.models.diffdiv.config import DiffDivConfig
from adarec_fast.models.diffdiv.model import DiffDiv
from adarec_fast.models.elcrec.config import ELCRecConfig
from adarec_fast.models.elcrec.model import ELCRec
from adarec_fast.models.globaldiff.config import GlobalDiffConfig
from adarec_fast.models.globaldiff.model import GlobalDiff
from adarec_fast.models.iclrec.config import ICLRecConfig
from adarec_fast.models.iclrec.model import ICLRec
from adarec_fast.models.iocrec.config import IOCRecConfig
from adarec_fast.models.iocrec.model import IOCRec
from adarec_fast.models.pdrec.config import PDRecConfig
from adarec_fast.models.pdrec.model import PDRec
from adarec_fast.models.sasrec.config import SASRecConfig
from adarec_fast.models.sasrec.model import SASRec
from adarec_fast.ranking.frames import FrameOptions, recommendation_frames

KNOWN: list[tuple[Any, Any]] = [
    (options.ADARecOptions, ADARecConfig), (options.SASRecOptions, SASRecConfig),
    (options.ICLRecOptions, ICLRecConfig), (options.ELCRecOptions, ELCRecConfig),
    (options.IOCRecOptions, IOCRecConfig), (options.BASRecOptions, BASRecConfig),
    (options.PDRecOptions, PDRecConfig), (options.GlobalDiffOptions, GlobalDiffConfig),
    (options.BERT4RecOptions, BERT4RecConfig), (options.CaserOptions, CaserConfig),
    (options.ADARecICLRecOptions, ADARecICLRecConfig),
    (options.ADARecELCRecOptions, ADARecELCRecConfig),
    (options.ADARecIOCRecOptions, ADARecIOCRecConfig),
    (options.DiffDivOptions, DiffDivConfig),
    (options.CountingOptions, CountingConfig), (options.PopularityOptions, PopularityConfig),
]  # fmt: skip


@pytest.mark.parametrize(("listed", "config"), KNOWN)
def test_the_lists_are_the_configurations(listed: Any, config: Any) -> None:
    fields = {name: field.annotation for name, field in config.model_fields.items()}
    if issubclass(config, ADARecConfig):
        # ADARec's own parameter, since it may be a module, too; on other systems there is none.
        own = inspect.signature(ADARec).parameters
        assert "backbone" in own
        assert "backbone" not in get_type_hints(listed)
        del fields["backbone"]
    assert get_type_hints(listed) == fields
    assert not listed.__required_keys__


def test_a_chain_takes_what_counting_takes() -> None:
    assert set(MarkovConfig.model_fields) <= set(get_type_hints(options.CountingOptions))


def test_options_of_frames_are_their_arguments() -> None:
    found = inspect.signature(recommendation_frames).parameters.values()
    assert {p.name for p in found if p.kind is p.KEYWORD_ONLY} == set(FrameOptions.__annotations__)


MODELS = [
    ADARec, SASRec, ICLRec, ELCRec, IOCRec, BASRec, PDRec, BERT4Rec, Caser, GlobalDiff,
    DiffDiv, ADARecICLRec, ADARecELCRec, ADARecIOCRec, Counting, Popularity,
]  # fmt: skip


@pytest.mark.parametrize("model", MODELS)
def test_every_model_says_so(model: Any) -> None:
    assert "Unpack[" in str(inspect.signature(model).parameters["options"].annotation)


@pytest.mark.slow
def test_a_misspelt_option_is_found_by_a_type_checker(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    script = tmp_path / "use.py"
    script.write_text(
        "import adarec_fast as af\n"
        "af.ADARec(num_items=9, max_depth=4, schedule='direct')\n"
        "af.ADARec(num_items=9, max_deep=4)\n"
        "af.ADARec(num_items='9')\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--follow-imports=silent", str(script)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if "use.py" in line and ": error:" in line]
    assert [line.split(":")[1] for line in lines] == ["3", "4"], done.stdout
    assert 'did you mean "max_depth"' in done.stdout.lower()
