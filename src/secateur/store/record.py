"""What ``secateur.json`` holds: the surgery, what the tensors are, and where the model comes from.

Everything is checked when it is read: only numbers, names and settings that surgery can have written pass, so a record
from elsewhere cannot make loading do anything but build the model it describes.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, StrictBool, StrictInt, ValidationError, model_validator

from ..errors import StoreError
from ..graph.select import SELECT
from ..surgery.layout import is_dense
from ..surgery.record import AttributeChange, SurgeryRecord

FORMAT = 2  # 2 brought packed tensors, masked parameters and branches that are gone; what has none is written as 1
DTYPES = {
    name: dtype
    for name in (
        *("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"),
        *("uint64", "uint32", "uint16", "complex128", "complex64", "float8_e4m3fn", "float8_e5m2"),
    )
    if isinstance(dtype := getattr(torch, name, None), torch.dtype)
}

Count = Annotated[int, Field(ge=0)]
# The forms that surgery writes: name, name[position], config.name.
AttributeName = Annotated[str, Field(pattern=r"^(config\.)?[A-Za-z_][A-Za-z0-9_]*$|^[A-Za-z_][A-Za-z0-9_]*\[[0-9]+\]$")]
AttributeValue = StrictBool | StrictInt | tuple[StrictInt, ...] | None


class _Checked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class BudgetNote(_Checked):
    """The budget that was asked for, and what came of it.

    Attributes:
        remove: fraction that was asked to go, 0 <= remove < 1.
        of: what the fraction counts, e.g. "macs".
        removed: fraction of it that went; None = not known.
    """

    remove: float = Field(ge=0, lt=1)
    of: str
    removed: float | None = Field(default=None, le=1)


class Details(_Checked):
    """Where a shrunk model comes from; everything is optional, and nothing of it is needed to load the model.

    Attributes:
        source: name of the model that was shrunk, e.g. "timm:resnet50".
        method: name of the pruning method.
        settings: the method's settings.
        budget: what was asked to go, and what went.
        verification_error: largest relative error of the shrunk against the masked model in float64.
        notes: anything else.
    """

    source: str | None = None
    method: str | None = None
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    budget: BudgetNote | None = None
    verification_error: float | None = Field(default=None, ge=0)
    notes: dict[str, JsonValue] = Field(default_factory=dict)

    @classmethod
    def of(cls, given: Details | Mapping[str, Any] | None) -> Details:
        """Return details as they will be read back.

        Raises:
            StoreError: a name is unknown, or a value is of another type or has no place in JSON.

        >>> Details.of({"budget": {"remove": 0.5, "of": "macs"}}).budget.of
        'macs'
        """
        if isinstance(given, Details):
            return given
        try:
            return cls.model_validate_json(json.dumps(dict(given or {}), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise StoreError(
                f"details={given!r} cannot be stored: {explain(error)}. Known are {', '.join(cls.model_fields)}; "
                "put anything else under notes, as numbers, strings, lists and dicts."
            ) from error


class StoredTensor(_Checked):
    """One parameter or buffer.

    Attributes:
        kind: which of the two.
        dtype: name in torch. A complex tensor lies in the file as its real view.
        shape: of the tensor.
        strides: in elements, without gaps; None = the usual ones.
        requires_grad: whether it is trained.
        nonzero: number of values in the file, where only those that are not zero lie there; see `packing`.
    """

    kind: Literal["parameter", "buffer"]
    dtype: str
    shape: tuple[Count, ...]
    strides: tuple[Count, ...] | None = None
    requires_grad: bool = False
    nonzero: Count | None = None

    @model_validator(mode="after")
    def _is_possible(self) -> StoredTensor:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype {self.dtype!r} is none of {', '.join(DTYPES)}")
        if self.strides is not None and not is_dense(self.shape, self.strides):
            raise ValueError(f"strides {list(self.strides)} leave gaps in a tensor of shape {list(self.shape)}")
        return self


class StoredAttention(_Checked):
    """Settings of an attention drop-in; see `secateur.surgery.attention.AttentionShape`."""

    kind: Literal["SlimMultiheadAttention"]
    num_heads: Count
    head_dim: Count
    query_dim: Count
    key_dim: Count
    value_dim: Count
    output_dim: Count
    names: tuple[str, ...]
    kept_heads: tuple[Count, ...] | None
    full_num_heads: Count | None


Window = Annotated[tuple[StrictInt, ...], Field(min_length=4, max_length=4)]


class StoredNoBranch(_Checked):
    """Settings of what stands where a module of a removed branch was; see `secateur.surgery.branches.NoBranch`."""

    kind: Literal["NoBranch"]
    axis: int = Field(lt=0)
    width: Count
    steps: tuple[tuple[Window, ...], ...]
    place: Count
    result_count: Count


class StoredChange(_Checked):
    """One attribute that followed the narrower tensors; see `secateur.surgery.record.AttributeChange`."""

    module: str
    name: AttributeName
    before: AttributeValue
    after: AttributeValue


class StoredSurgery(_Checked):
    """How the original class becomes the shrunk one; see `secateur.surgery.record.SurgeryRecord`."""

    kept: dict[str, list[tuple[Count, list[Count]]]]
    shapes: dict[str, tuple[Count, ...]]
    attributes: list[StoredChange]
    swapped: dict[str, Annotated[StoredAttention | StoredNoBranch, Field(discriminator="kind")]]
    plan: str
    selections: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _is_possible(self) -> StoredSurgery:
        for path in self.selections:
            if len(self.kept.get(f"{path}.{SELECT}.index", ())) != 1:
                raise ValueError(f"a channel selection stands at {path!r}, and nothing says what it passes on")
        for name, cuts in self.kept.items():
            shape = self.shapes.get(name, ())
            for axis, index in cuts:
                if axis >= len(shape):
                    raise ValueError(f"{name} is cut along axis {axis}, and its shape is {list(shape)}")
                if not index or index[-1] >= shape[axis] or any(a >= b for a, b in itertools.pairwise(index)):
                    raise ValueError(f"{name} keeps no ascending indices below {shape[axis]} along axis {axis}")
        return self

    @classmethod
    def of(cls, record: SurgeryRecord) -> StoredSurgery:
        """Return a record in the form that is stored.

        Raises:
            StoreError: the record holds what surgery cannot have written.
        """
        raw = {
            "kept": record.kept,
            "shapes": record.shapes,
            "attributes": [vars(change) for change in record.attributes],
            "swapped": record.swapped,
            "plan": record.plan,
            "selections": record.selections,
        }
        try:
            return cls.model_validate_json(json.dumps(raw))
        except (TypeError, ValueError) as error:
            raise StoreError(
                f"the model's record of surgery cannot be stored: {explain(error)}. Shrink the model again."
            ) from error

    def record(self) -> SurgeryRecord:
        """Return the record that surgery works with."""
        return SurgeryRecord(
            kept=self.kept,
            attributes=[AttributeChange(c.module, c.name, c.before, c.after) for c in self.attributes],
            swapped={path: settings.model_dump() for path, settings in self.swapped.items()},
            plan=self.plan,
            shapes=dict(self.shapes),
            selections=list(self.selections),
        )


class StoredModel(_Checked):
    """Everything in ``secateur.json``.

    Attributes:
        format: number of this layout.
        versions: of secateur, torch and Python that wrote it.
        model_class: qualified name of the original class.
        model_module: where that class was defined.
        sha256: digest of the tensor file, hexadecimal.
        size_bytes: of the tensor file.
        details: where the model comes from.
        training: module path -> whether it was in training mode, where that differs from the module around it.
        surgery: what was cut.
        tensors: name -> what it is, for each tensor of the file.
        same_as: name of a tied tensor -> the name under which it lies in the file.
        empty: parameters and buffers that are None.
        classes: module path -> name of its class.
        masked: parameters that lost single weights; their zeros are to stay.
    """

    format: int
    versions: dict[str, str]
    model_class: str
    model_module: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size_bytes: Count
    details: Details
    training: dict[str, bool]
    surgery: StoredSurgery
    tensors: dict[str, StoredTensor]
    same_as: dict[str, str]
    empty: list[str]
    classes: dict[str, str]
    masked: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _is_possible(self) -> StoredModel:
        if unknown := sorted(set(self.masked) - self.tensors.keys()):
            raise ValueError(f"{unknown[0]!r} is masked, and it is not in the file")
        if unknown := sorted(set(self.same_as.values()) - self.tensors.keys()):
            raise ValueError(f"a tensor is tied to {unknown[0]!r}, which is not in the file")
        if double := sorted(self.tensors.keys() & (self.same_as.keys() | set(self.empty))):
            raise ValueError(f"{double[0]!r} is listed twice")
        return self

    def to_json(self) -> str:
        """Return the text of ``secateur.json``, one line for each part."""
        parts = self.model_dump(mode="json", exclude_defaults=True)
        lines = [f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in parts.items()]
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @classmethod
    def from_json(cls, text: str) -> StoredModel:
        """Read the text of ``secateur.json``.

        Raises:
            StoreError: it is no JSON, of a newer layout, or not what `save` writes; says what is wrong with it.
        """
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise StoreError(f"it is damaged, it cannot be parsed as JSON ({error}): save the model again.") from error
        found = raw.get("format") if isinstance(raw, dict) else None
        if type(found) is not int or found < 1:
            raise StoreError('it has no "format" number, so it was not written by secateur.save.')
        if found > FORMAT:
            versions = raw.get("versions")
            writer = versions.get("secateur") if isinstance(versions, dict) else None
            raise StoreError(
                f"its format is {found}, written by secateur {writer}; this version reads up to {FORMAT}: "
                "upgrade secateur."
            )
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise StoreError(f"it is not what secateur.save writes: {explain(error)}. Save the model again.") from error


def explain(error: Exception) -> str:
    """Return the first things that a validation found wrong, in one line."""
    if not isinstance(error, ValidationError):
        return str(error)
    found = [f"{'.'.join(str(part) for part in e['loc']) or 'the record'}: {e['msg']}" for e in error.errors()[:3]]
    return "; ".join(found)
