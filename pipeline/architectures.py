"""The networks by name: what each one is, where it comes from, and which patches it accepts.

`plan` asks for the shape of a network, `pipeline.nn.networks` builds it. Imports no torch.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from pipeline.errors import PlanError
from pipeline.topology import BASE_FEATURES, SMALLEST_EDGE, Topology


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """`num_stages` counts the resolutions of a network that halves all axes alike; None: the plan or the patch decides.

    A fixed patch is one whose size is part of the weights; others take any multiple of their strides.
    `width` is the number of features in the first stage at full size; None: fixed, so that `features` does not apply.
    """

    idea: str
    source: str
    num_stages: int | None = None
    fewest_stages: int = 3
    has_planned_strides: bool = False
    has_planned_kernels: bool = False
    has_fixed_patch: bool = False
    width: int | None = BASE_FEATURES


ARCHITECTURES = {
    "unet": Architecture(
        idea="nnU-Net's U-Net: strides and kernels follow the spacing",
        source="Isensee et al. 2021, arXiv:1904.08128",
        has_planned_strides=True,
        has_planned_kernels=True,
    ),
    "residual_unet": Architecture(
        idea="nnU-Net's residual encoder: many blocks on the way down, one convolution per stage on the way up",
        source="Isensee et al. 2024, arXiv:2404.09556",
        has_planned_strides=True,
        has_planned_kernels=True,
    ),
    "classic_unet": Architecture(
        idea="the original: unpadded convolutions, cropped skips, a mirrored margin",
        source="Ronneberger et al. 2015, arXiv:1505.04597",
        fewest_stages=2,
        width=64,
    ),
    "attention_unet": Architecture(
        idea="gates weigh each skip by what the stage below it has found",
        source="Oktay et al. 2018, arXiv:1804.03999",
        has_planned_strides=True,
    ),
    "unet_plus_plus": Architecture(
        idea="nested skips: U-Nets of every depth in one",
        source="Zhou et al. 2018, arXiv:1807.10165",
        num_stages=5,
    ),
    "segresnet": Architecture(
        idea="residual blocks with group norm; the decoder adds the skips instead of joining them",
        source="Myronenko 2018, arXiv:1810.11654",
        num_stages=4,
    ),
    "swin_unetr": Architecture(
        idea="an encoder of attention inside shifted windows",
        source="Hatamizadeh et al. 2022, arXiv:2201.01266",
        num_stages=6,
    ),
    "unetr": Architecture(
        idea="a vision transformer reads the patch as tokens of 16 voxels an edge",
        source="Hatamizadeh et al. 2021, arXiv:2103.10504",
        num_stages=5,
        has_fixed_patch=True,
    ),
    "backbone_unet": Architecture(
        idea="the encoder is a classification network, `encoder` says which",
        source="Iglovikov and Shvets 2018, arXiv:1801.05746",
        num_stages=6,
        width=None,
    ),
    "fcn": Architecture(
        idea="encoder and decoder without skips: the baseline that shows what they are worth",
        source="Long et al. 2015, arXiv:1411.4038",
        has_planned_strides=True,
        has_planned_kernels=True,
    ),
}
ENCODERS = (
    *(f"resnet{depth}" for depth in (10, 18, 34, 50, 101, 152, 200)),
    *(f"{kind}{depth}" for kind in ("resnext", "se_resnext") for depth in (50, 101)),
    *(f"densenet{depth}" for depth in (121, 169, 201, 264)),
    *(f"efficientnet-b{size}" for size in range(9)),
    "efficientnet-l2",
)
MOST_CLASSIC_STAGES = {2: 5, 3: 4}  # of the papers: Ronneberger et al. 2015, Çiçek et al. 2016 (arXiv:1606.06650)


def fit_architecture(configuration: str, wanted: Mapping[str, Any], fitted: Topology) -> tuple[Topology, str]:
    """Strides, kernels and patch of the network as it will be built, and the reason for them.

    `fitted` is the plan for a U-Net that follows the spacing. A network with a shape of its own gets the same patch,
    each edge rounded up to what it can halve; patches may be larger than a scan, whose surroundings are zeros.

    Args:
        wanted: the configuration's section of config.yaml.

    Raises:
        PlanError: a setting does not apply to the network, or the patch is too small for it.
    """
    name, dims = wanted["network"], len(fitted.patch_size)
    architecture = ARCHITECTURES[name]
    _refuse_what_does_not_apply(configuration, wanted)
    if architecture.has_planned_strides:
        kernels = fitted.kernels if architecture.has_planned_kernels else ((3,) * dims,) * len(fitted.strides)
        reason = f"halve the axes of similar spacing until an edge would fall under {SMALLEST_EDGE} voxels"
        if "stages" in wanted:
            reason += f", or after the {wanted['stages']} stages that are set"
        return Topology(fitted.strides, kernels, fitted.patch_size), reason
    num_stages = architecture.num_stages or wanted.get("stages") or classic_stages(fitted.patch_size, wanted["padded"])
    divisor = 2 ** (num_stages - 1)
    patch_size = tuple(ceil(edge / divisor) * divisor for edge in fitted.patch_size)
    shape = " × ".join(str(edge) for edge in fitted.patch_size)
    if 2 * min(fitted.patch_size) < divisor or max(patch_size) < 2 * divisor:
        raise PlanError(
            f"{configuration}: a patch of {shape} voxels is too small for {name}, which halves every edge "
            f"{num_stages - 1} times: edges of {divisor // 2} or more expected, one of them more than {divisor}. "
            "Set a larger `patch_size`, a finer `spacing_mm`, more `memory_gib`, or `network: unet`, which follows the scan."
        )
    reason = f"{name} halves every edge {num_stages - 1} times, of a patch that it divides evenly"
    if name == "classic_unet" and not wanted["padded"]:
        reason += f"; unpadded, so that it mirrors {classic_margin(num_stages)} voxels around the patch"
    strides = ((1,) * dims, *((2,) * dims,) * (num_stages - 1))
    return Topology(strides, ((3,) * dims,) * num_stages, patch_size), reason


def candidate_widths(wanted: Mapping[str, Any]) -> list[int]:
    """The features of the first stage that are worth timing: as set, or full size and what a short budget needs."""
    full = ARCHITECTURES[wanted["network"]].width
    if "features" in wanted:
        return [wanted["features"]]
    return [full // 4, full // 2, full] if full else [BASE_FEATURES]


def classic_stages(patch_size: Sequence[int], is_padded: bool) -> int:
    """The depth of a classic U-Net: unpadded, its margin takes at most half of the shortest edge on either side."""
    shortest, fewest = min(patch_size), ARCHITECTURES["classic_unet"].fewest_stages
    candidates = range(fewest, MOST_CLASSIC_STAGES[len(patch_size)] + 1)
    if is_padded:
        fitting = [stages for stages in candidates if shortest >= SMALLEST_EDGE * 2 ** (stages - 1)]
    else:
        fitting = [stages for stages in candidates if shortest >= 2 * classic_margin(stages)]
    return max(fitting, default=fewest)


def classic_margin(num_stages: int) -> int:
    """Voxels that unpadded convolutions lose at each border: 92 with five stages, from 572 to 388."""
    return 3 * 2**num_stages - 4


def _refuse_what_does_not_apply(configuration: str, wanted: Mapping[str, Any]) -> None:
    name, architecture = wanted["network"], ARCHITECTURES[wanted["network"]]
    if name == "backbone_unet" and wanted["encoder"] not in ENCODERS:
        near = difflib.get_close_matches(wanted["encoder"], ENCODERS, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known encoders: {', '.join(ENCODERS)}."
        raise PlanError(f"{configuration}: encoder is {wanted['encoder']!r}. {hint}")
    if "stages" in wanted and architecture.num_stages:
        raise PlanError(
            f"{configuration}: `stages` is {wanted['stages']}, yet {name} always has {architecture.num_stages}. Remove it."
        )
    if "features" in wanted and architecture.width is None:
        raise PlanError(
            f"{configuration}: `features` is {wanted['features']}, yet {name} is as wide as its encoder. "
            "Remove it, or choose another `encoder`."
        )
