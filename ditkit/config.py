"""The typed settings tree: one frozen, data-only base; files, overrides, diff and fingerprint."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Base of everything that is data: immutable, and an unknown key is an error.

    A settings class with alternatives carries `kind: Literal[...]`, so that unions read back from JSON exactly.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
