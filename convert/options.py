"""The options of a conversion, checked before any work."""

from __future__ import annotations

from dataclasses import dataclass

from ..checkpoint.config import QUANTIZATION_MODES, Quantization
from ..checkpoint.hub_names import is_hub_id
from ..checkpoint.tensors import DTYPE_NAMES
from ..errors import ConversionError

# mlx-lm's defaults; each mode but affine has exactly one group size and number of bits.
DEFAULTS = {
    mode: Quantization(group_size, bits, mode)
    for mode, group_size, bits in (
        ("affine", 64, 4),
        ("mxfp4", 32, 4),
        ("mxfp8", 32, 8),
        ("nvfp4", 16, 4),
    )
}
AFFINE_BITS = (2, 3, 4, 5, 6, 8)
AFFINE_GROUP_SIZES = (32, 64, 128)
DTYPES = {DTYPE_NAMES[code]: code for code in ("F16", "BF16", "F32")}


@dataclass(frozen=True)
class Options:
    """Each view's quantization (None: as it is), and the type of tensors that are not packed."""

    ar: Quantization | None
    diffusion: Quantization | None
    dtype: str | None


def check_options(
    *,
    quantize: bool,
    q_bits: int | None,
    q_group_size: int | None,
    q_mode: str,
    dtype: str | None,
    diffusion_q_bits: int | None,
    upload_repo: str | None,
) -> Options:
    """Make the options of `convert` consistent, or refuse them.

    Raises:
        ConversionError: naming the option and what it may be.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConversionError(f"dtype is {dtype!r}; choose {', '.join(DTYPES)}.")
    if upload_repo is not None and not is_hub_id(upload_repo):
        raise ConversionError(
            f"upload_repo is {upload_repo!r}; expected a Hub id of the form owner/name."
        )
    if q_mode not in QUANTIZATION_MODES:
        raise ConversionError(f"q_mode is {q_mode!r}; choose {', '.join(QUANTIZATION_MODES)}.")
    if not quantize and q_mode != "affine":
        raise ConversionError(f"q_mode {q_mode} has no effect without quantize (-q).")
    if not quantize and q_bits is not None:
        raise ConversionError("q_bits has no effect without quantize (-q).")
    if not quantize and q_group_size is not None and not diffusion_q_bits:
        raise ConversionError("q_group_size has no effect without quantize (-q).")

    if q_mode == "affine" and q_bits not in (None, *AFFINE_BITS):
        raise ConversionError(f"q_bits is {q_bits}; choose from {AFFINE_BITS}.")
    if diffusion_q_bits not in (None, 0, *AFFINE_BITS):
        raise ConversionError(
            f"diffusion_q_bits is {diffusion_q_bits}; choose from {(0, *AFFINE_BITS)}."
        )
    ar = _quantization(q_mode, q_bits, q_group_size) if quantize else None
    return Options(ar, _for_diffusion(ar, diffusion_q_bits, q_group_size), dtype)


def _quantization(mode: str, bits: int | None, group_size: int | None) -> Quantization:
    default = DEFAULTS[mode]
    asked = Quantization(
        default.group_size if group_size is None else group_size,
        default.bits if bits is None else bits,
        mode,
    )
    if mode != "affine" and asked != default:
        raise ConversionError(
            f"{mode} has {default.bits} bits in groups of {default.group_size}, not {asked.bits} "
            f"in groups of {asked.group_size}. Leave q_bits and q_group_size out."
        )
    if mode == "affine" and asked.group_size not in AFFINE_GROUP_SIZES:
        raise ConversionError(
            f"q_group_size is {asked.group_size}; choose from {AFFINE_GROUP_SIZES}."
        )
    return asked


def _for_diffusion(
    ar: Quantization | None, bits: int | None, group_size: int | None
) -> Quantization | None:
    """The diffusion view's own quantization: that of the AR view unless `bits` says otherwise."""
    if bits is None or (ar is not None and bits == ar.bits):
        return ar
    if bits == 0:
        return None
    affine = ar is None or ar.mode == "affine"
    return _quantization("affine", bits, group_size if affine else None)
