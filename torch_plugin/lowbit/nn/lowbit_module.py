# SPDX-License-Identifier: MIT
"""What modules with low-bit weights have in common."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class LowbitModule(nn.Module):
    """A module some of whose parameters are codes and scales: the stored ones.

    They are frozen, keep their bits under `.to(dtype)`, `.half()` and their like, and move only
    between devices. A state dict is checked before anything is copied.
    """

    def stored(self) -> set[str]:
        """Names of the stored parameters."""
        raise NotImplementedError

    def why_not_loadable(self, name: str, value: Tensor, like: Tensor | None = None) -> str | None:
        """The rule that a value for the parameter of that name breaks, to follow its name; None if
        it breaks none. Shape and dtype have to be those of `like`; None means the parameter's."""
        problem = self._why_not_of_form(name, value, like)
        if problem or name not in self.stored() or value.is_meta or value.numel() == 0:
            return problem
        return self._why_not_stored(name, value)

    def _why_not_of_form(self, name: str, value: Tensor, like: Tensor | None = None) -> str | None:
        """The same of shape and dtype alone, without a look at the data."""
        like = self._parameters[name] if like is None else like
        if value.shape != like.shape:
            return f"has shape {list(value.shape)}, expected {list(like.shape)}"
        if name in self.stored() and value.dtype != like.dtype:
            return f"has dtype {value.dtype}, expected {like.dtype}"
        return None

    def _why_not_stored(self, name: str, value: Tensor) -> str | None:
        """The rule that the data of a stored part breaks: a scale is finite, an absmax not
        negative."""
        if not value.is_floating_point():
            return None
        problem = why_not_finite(value)
        if problem is None and name.endswith("absmax") and (lowest := value.amin().item()) < 0:
            problem = f"holds {lowest:g}, expected no negative value"
        return problem

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LowbitModule":
        stored = {id(self._parameters[name]) for name in self.stored()}

        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if id(tensor) in stored and moved.dtype != tensor.dtype:
                return tensor.to(moved.device)
            return moved

        return super()._apply(keep_dtype, recurse)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Checks everything first: torch copies what fits and reports the rest afterwards."""
        mine = {name for name, p in self._parameters.items() if p is not None}
        given = {name for name in self._parameters if prefix + name in state_dict}
        entries = {name: state_dict[prefix + name] for name in given}
        if given != mine and not given <= mine - self.stored():
            error_msgs.append(
                f"the entries under {prefix!r} are {', '.join(sorted(given))}, "
                f"expected {', '.join(sorted(mine))}"
            )
            return
        problems = [
            f"{prefix}{name} {problem}"
            for name, value in entries.items()
            if (problem := self.why_not_loadable(name, value))
        ]
        if problems:
            error_msgs.extend(problems)
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def why_not_finite(value: Tensor) -> str | None:
    if all(bound.isfinite() for bound in value.aminmax()):
        return None
    return "holds NaN or infinity, expected finite values"
