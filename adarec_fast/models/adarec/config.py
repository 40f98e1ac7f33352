"""ADARec's configuration."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from ...config import ModelConfig, check_heads

Schedule = Literal["respaced", "direct"]
DepthGradient = Literal["truncated", "full"]


class ADARecConfig(ModelConfig):
    """What the model is. Symbols are the paper's: D hidden size, T the greatest depth T_max.

    Example:
        >>> af.ADARecConfig.create(num_items=12, max_depth=8).hidden_size
        64
    """

    system: ClassVar[str] = "adarec"

    hidden_size: int = Field(64, ge=1, le=65_536, description="D, size of every representation")
    num_layers: int = Field(
        2, ge=0, le=256, description="Transformer layers of the built-in backbone"
    )
    num_heads: int = Field(2, ge=1, description="attention heads, backbone and experts")
    feedforward_multiplier: int = Field(4, ge=1, le=64, description="feed-forward size over D")
    dropout: float = Field(0.5, ge=0.0, lt=1.0, description="hidden dropout probability")
    attention_dropout: float = Field(0.5, ge=0.0, lt=1.0, description="dropout on attention")
    layer_norm_eps: float = Field(1e-5, gt=0.0, description="added to LayerNorm's variance")
    local_path: int = Field(
        0, ge=0, le=16,
        description="taps of a causal convolution before each encoder layer; 0: none",
    )  # fmt: skip

    backbone: str | None = Field(
        None, pattern=r"^\w+(\.\w+)*:\w+$",
        description="encoder in the place of the built-in one, as package.module:Class",
    )  # fmt: skip

    max_depth: int = Field(4, ge=1, le=64, description="T_max, greatest diffusion depth")
    schedule: Schedule = Field("respaced", description="noise schedule, see models/adarec")
    denoiser: Literal["paper", "bounded"] = Field(
        "paper",
        description="eps_theta: an MLP of E_k; bounded, not in the paper: a turn of E_k and the "
        "MLP, so that no level of Eq. 5 grows",
    )
    depth_gradient: DepthGradient = Field(
        "truncated", description="levels computed in training: up to T_u, or all"
    )
    gumbel_temperature: float = Field(0.5, gt=0.0, description="tau_gs of Eq. 3")
    contrastive_temperature: float = Field(0.07, gt=0.0, description="tau of Eq. 6")
    coarse_expert: Literal["mlp", "transformer"] = Field("mlp", description="E_coar")
    num_experts: int = Field(
        2, ge=2, le=65,
        description="N, experts of HP-MoE: the fine one, and N - 1 of the kind of E_coar, each "
        "contrasted over its own of N groups of levels",
    )  # fmt: skip
    evaluation_samples: int = Field(
        0, ge=0, description="S noisy trajectories averaged at evaluation; 0: one without noise"
    )

    lambda_deno: float = Field(0.1, ge=0.0, description="weight of L_deno in Eq. 12")
    lambda_cont: float = Field(0.1, ge=0.0, description="weight of L_cont in Eq. 12; 0 removes it")
    lambda_expl: float = Field(0.01, ge=0.0, description="weight of L_expl in Eq. 12")
    label_smoothing: float = Field(
        0.0, ge=0.0, lt=1.0, description="share of the target in Eq. 13 that all items divide"
    )
    transition_smoothing: float = Field(
        0.0, ge=0.0, lt=1.0,
        description="share of the target in Eq. 13 that the items divide that follow it elsewhere",
    )  # fmt: skip

    depth: Literal["adaptive", "fixed"] = Field(
        "adaptive", description="ADC, or the fixed depth T_max for everybody (Table 4)"
    )
    diffusion: bool = Field(True, description="HDA; without it every level is E itself (Table 4)")
    moe: bool = Field(True, description="HP-MoE; without it the mean of the levels (Table 4)")
    level_readout: Literal["mean", "deepest"] = Field(
        "mean", description="of the levels without HP-MoE: their mean, or level T_u alone"
    )
    router: Literal["content", "level"] = Field(
        "content", description="Eq. 7, or the level embedding alone (Table 4)"
    )
    start: Literal["random", "backbone"] = Field(
        "random",
        description="backbone, not in the paper: both experts begin as LayerNorm alone, the coarse "
        "one with a path around its MLP, so that h begins as E",
    )
    residual: bool = Field(
        False, description="not in the paper: LayerNorm(E + h_u) after Eq. 11"
    )

    fused_trajectory: bool = Field(
        False,
        description="keep no level in memory: one kernel at inference on CUDA, and a backward "
        "pass that computes the levels again, some tokens at a time",
    )
    @model_validator(mode="after")
    def _heads_divide(self) -> ADARecConfig:
        check_heads(self.hidden_size, self.num_heads)
        return self

    @model_validator(mode="after")
    def _fusion_has_all_its_parts(self) -> ADARecConfig:
        if self.fused_trajectory and not (
            self.diffusion and self.moe and self.coarse_expert == "mlp" and self.num_experts == 2
        ):
            raise ValueError(
                f"fused_trajectory=True needs diffusion=True, moe=True, coarse_expert='mlp' and "
                f"num_experts=2; got diffusion={self.diffusion}, moe={self.moe}, "
                f"coarse_expert={self.coarse_expert!r}, num_experts={self.num_experts}"
            )
        return self

    @model_validator(mode="after")
    def _levels_are_read_once(self) -> ADARecConfig:
        if self.moe and self.level_readout != "mean":
            raise ValueError(
                f"level_readout={self.level_readout!r} is for moe=False; HP-MoE reads all levels"
            )
        return self

    @model_validator(mode="after")
    def _experts_have_levels(self) -> ADARecConfig:
        if self.num_experts == 2:
            return self
        if not self.moe:
            raise ValueError(
                f"num_experts={self.num_experts} needs moe=True; leave it 2 without HP-MoE"
            )
        if self.num_experts > self.num_levels:
            raise ValueError(
                f"num_experts={self.num_experts} is more than the {self.num_levels} levels of "
                f"max_depth={self.max_depth}; use at most as many, or a greater depth"
            )
        if self.backend not in ("auto", "packed", "reference"):
            raise ValueError(
                f"backend={self.backend!r}: its kernels have two experts, and "
                f"num_experts={self.num_experts}; use 'auto', 'packed' or 'reference'"
            )
        return self

    @property
    def num_levels(self) -> int:
        """T + 1, levels 0..T of a full hierarchy."""
        return self.max_depth + 1

    @property
    def augmented(self) -> bool:
        """Whether anything of ADARec is on; if not, the model is its backbone."""
        return self.depth == "adaptive" or self.diffusion or self.moe
