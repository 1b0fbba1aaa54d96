"""What a latent store says of itself: attributes, and the declared list of its row sets."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, field
from typing import Any, Literal

import numpy as np

from sra2cli import __version__
from sra2cli.config.checks import Count, Flag, Natural, Number, Positive, settings
from sra2cli.config.reading import read_record

StoredType = Literal["float32", "float16"]
CLASS_FEATURE = "class_feature"  # name of the rows of an image encoder's class token
RowType = Literal[
    "float64", "float32", "float16", "int64", "int32", "int16", "uint16", "uint8", "bool"
]
MOST = 1 << 20  # images encoded together
Scales = Positive | tuple[Positive, ...]  # one number for each channel, or one for all
Shifts = Number | tuple[Number, ...]

OWN = "computed of its latents"  # statistics, known when a store is finished
AS_JSON = ("choice", "statistics", "extra")
TEXT = (
    *("text_encoder", "text_fingerprint", "text_tokens", "text_width", "text_vocabulary"),
    *("text_features", "uncaptioned"),
)
MAY_LACK = (*AS_JSON, *TEXT)  # left out where they say nothing
FREE = (
    "tool",
    "choice",
    "vae",
    "encoder",
    "text_encoder",
    "encode_batch",
)  # may differ between stores of the same numbers


@settings
class RowSet:
    """Rows of one kind, one an image; in `text_sets`, one a caption.

    shape: of a row. made_by, fingerprint: of what made them.
    mirrored: whether the mirrored images of a store have rows of their own.
    """

    shape: tuple[Count, ...]
    dtype: RowType
    made_by: str
    fingerprint: str
    mirrored: Flag = True


@settings
class StoreInfo:
    """What identifies a store: everything that changes its numbers, and how to read them."""

    vae: str
    vae_fingerprint: str
    scale: Scales
    shift: Shifts
    channels: Count
    latent: Count  # side of the latent
    resolution: Count  # side of the image
    classes: Natural  # 0: no labels
    class_names: list[str] = field(default_factory=list)
    crop: str = "adm-center"
    image_range: str = "[-1, 1]"
    moments: str = "mean,std"
    dtype: StoredType = "float32"  # of the moments
    encode_precision: str = "fp32"
    encode_batch: Natural = 0  # images encoded together while it is written, so that it can go on
    mirrored: Flag = False  # also holds the moments (and features) of the mirrored images
    encoder: str = ""  # "": no features
    encoder_fingerprint: str = ""
    feature_tokens: Natural = 0  # T
    feature_width: Natural = 0  # F
    feature_dtype: StoredType = "float16"
    tool: str = f"sra2 {__version__}"

    choice: dict[str, str] = field(default_factory=dict)  # how the source was read, where several
    statistics: str = ""  # what scale and shift are of; "": of the first stage's config
    extra: dict[str, RowSet] = field(default_factory=dict)  # beside moments and features

    text_encoder: str = ""  # "": no captions
    text_fingerprint: str = ""
    text_tokens: Natural = 0  # L
    text_width: Natural = 0  # E
    text_vocabulary: Natural = 0  # its largest token id + 1
    text_features: Flag = False  # stored; else only token ids are
    uncaptioned: Natural = 0  # images that were left out, as they have no caption

    def __post_init__(self) -> None:
        for name in ("scale", "shift"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != self.channels:
                raise ValueError(f"{name} holds {len(value)} numbers for {self.channels} channels")
        if self.encode_batch > MOST:
            raise ValueError(f"encode_batch is {self.encode_batch}, above {MOST}")
        if self.class_names and len(self.class_names) != self.classes:
            raise ValueError(f"{len(self.class_names)} names of {self.classes} classes")

    @property
    def sets(self) -> dict[str, RowSet]:
        """The kinds of rows, by name: the declared list."""
        shape = (2 * self.channels, self.latent, self.latent)
        sets = {"moments": RowSet(shape, self.dtype, self.vae, self.vae_fingerprint)}
        if self.encoder:
            tokens = (self.feature_tokens, self.feature_width)
            made = (self.encoder, self.encoder_fingerprint)
            sets["features"] = RowSet(tokens, self.feature_dtype, *made)
        return {**sets, **self.extra}

    def row_sets(self) -> dict[str, RowSet]:
        """The data sets that extraction fills, those of the mirrored images too."""
        found = self.sets
        if self.mirrored:
            found |= {f"mirrored_{name}": rows for name, rows in found.items() if rows.mirrored}
        return found

    @property
    def text_sets(self) -> dict[str, RowSet]:
        """The data sets with a row a caption."""
        if not self.text_encoder:
            return {}
        made = (self.text_encoder, self.text_fingerprint)
        small = self.text_vocabulary <= 1 << 16
        sets = {"caption_ids": RowSet((self.text_tokens,), "uint16" if small else "int32", *made)}
        if self.text_features:
            tokens = (self.text_tokens, self.text_width)
            sets["caption_features"] = RowSet(tokens, self.null_dtype, *made)
            sets["caption_state"] = RowSet((), "uint8", *made)
        return sets

    @property
    def null_dtype(self) -> StoredType:
        """Of the features of the empty caption: as of the others, if they are stored."""
        return "float16" if self.text_features else "float32"

    @property
    def row_bytes(self) -> int:
        """Bytes of one image."""
        return _bytes(self.row_sets())

    @property
    def caption_bytes(self) -> int:
        """Bytes of one caption, beside its text."""
        return _bytes(self.text_sets)

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> "StoreInfo":
        """From what `asdict` gave and JSON kept; ValueError, one line, where it is not that."""
        return read_record(cls, dict(values))

    def differs(self, other: "StoreInfo") -> list[str]:
        """Names of the settings in which two stores differ, those in `FREE` aside."""
        a, b = asdict(self), asdict(other)
        own = {self.statistics == OWN, other.statistics == OWN}
        free = (*FREE, "scale", "shift") if own == {True} else FREE
        free = (*free, "statistics") if own == {False} else free  # a file may lie elsewhere now
        return [k for k in a if a[k] != b[k] and k not in free]


def _bytes(sets: Mapping[str, RowSet]) -> int:
    """Of one row of each."""
    return sum(math.prod(rows.shape) * np.dtype(rows.dtype).itemsize for rows in sets.values())


def encode_info(info: StoreInfo) -> dict[str, Any]:
    """As attributes; what a store has none of is left out, as stores of before had it."""
    values = asdict(info)
    values["class_names"] = json.dumps(values["class_names"])
    for key in MAY_LACK:
        values[key] = values[key] or None
    for key in AS_JSON:
        values[key] = None if values[key] is None else json.dumps(values[key])
    return {key: value for key, value in values.items() if value is not None}


def decode_info(attributes: Mapping[str, Any]) -> StoreInfo:
    """From attributes; KeyError or ValueError where they are not those of a store."""
    plain = {
        k: v.tolist() if isinstance(v, np.generic | np.ndarray) else v
        for k in StoreInfo.__dataclass_fields__
        if k in attributes or k not in MAY_LACK
        for v in [attributes[k]]
    }
    for key in ("class_names", *AS_JSON):
        if key in plain:
            plain[key] = json.loads(plain[key])
    return StoreInfo.from_plain(plain)
