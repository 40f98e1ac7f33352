"""Configurations of the systems that count."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from ...config import ModelConfig


class PopularityConfig(ModelConfig):
    """Popularity has nothing to choose."""

    system: ClassVar[str] = "popularity"


class CountingConfig(ModelConfig):
    """Co-occurrence in a window, and how its counts are scaled and summed.

    The defaults were chosen on Beauty's validation part; neighbours of them change little.
    """

    system: ClassVar[str] = "counting"

    window: int = Field(5, ge=1, le=1024, description="farthest distance of a pair, in items")
    transition: float = Field(1.0, ge=0.0, description="added to the weight 1 of adjacent pairs")
    backward: float = Field(0.5, ge=0.0, description="of a pair read backwards, over forward")
    decay: float = Field(0.8, ge=0.0, le=1.0, description="weight of an item a step further back")
    row_exponent: float = Field(
        0.5, ge=0.0, le=1.0, description="an item's counts are divided by their sum to this power"
    )
    popularity_exponent: float = Field(
        0.3, ge=0.0, le=1.0, description="and each by the other item's popularity to this one"
    )
    prior: float = Field(
        1e-6, ge=0.0, description="greatest score that an item has by its popularity alone"
    )
    neighbours: int = Field(256, ge=1, le=65_536, description="largest counts kept of an item")


class MarkovConfig(ModelConfig):
    """A first-order chain has nothing to choose but how much it keeps."""

    system: ClassVar[str] = "markov"

    neighbours: int = Field(1024, ge=1, le=65_536, description="largest counts kept of an item")
