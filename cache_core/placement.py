"""One hook of the cache on one module: attached, kept when others change the module's forward, removed."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

from torch import nn

from cache_core.chain import CacheHook, holder, insert, is_innermost, leads_to_another, own_forward, take_off

__all__ = ["Placement"]


class Placement:
    """A hook in the innermost place of a module's chain of forwards.

    Raises:
        RuntimeError: the module was copied or is shared, and has a cache's hook and other hooks on it.
    """

    def __init__(self, module: nn.Module, hook: CacheHook, name: str) -> None:
        self.module, self.hook, self._name = module, hook, name
        self._wrapper: Any = None
        self._outermost: Any = None
        self._class_forward: Callable[..., Any] | None = None
        _clean_copy(module, name)
        self._insert()

    def settle(self) -> bool:
        """Route calls of the module through the hook again, innermost. True if the forward that it wraps has changed.

        accelerate's offloading removes and restores its hooks after every image; people patch a forward and later put
        back the one they saved.
        """
        if self.module.__dict__.get("forward") is not self._outermost:
            if not is_innermost(self.module, self.hook, self._wrapper):
                self.remove()
                self._insert()
                return True
            self._outermost = self.module.__dict__.get("forward")
        if self._class_forward is not None and type(self.module).forward is not self._class_forward:
            self._class_forward = type(self.module).forward  # patched, or another class
            self.hook.fn_ref.original_forward = MethodType(self._class_forward, self.module)
            return True
        return False

    def check_removable(self) -> None:
        """Raise RuntimeError if a wrapper that cannot be changed holds the hook's: removing the hook would remove that
        wrapper as well."""
        link = holder(self.module, self._wrapper)
        if link is not None and link.owner is None:
            raise RuntimeError(
                f"cannot detach the cache from {type(self.module).__name__}: its forward was wrapped by "
                f"{_name(link.wrapper)!r} after the cache was attached (parallelize_transformer, a patch). Undo that "
                "first, or attach the cache last"
            )

    def remove(self) -> None:
        """Remove the hook; if a wrapper still holds it, it passes calls through."""
        take_off(self.module, self.hook, self._name, self._wrapper)

    def _insert(self) -> None:
        self._wrapper = insert(self.module, self.hook, self._name)
        self._outermost = self.module.__dict__["forward"]
        own = own_forward(self.module, self.hook.fn_ref.original_forward)
        self._class_forward = type(self.module).forward if own else None


def _name(forward: Any) -> str:
    function = getattr(forward, "func", forward)
    return str(getattr(function, "__qualname__", function))


def _clean_copy(module: nn.Module, name: str) -> None:
    """Remove the cache's hook from a copied block, whose forward would run the original's."""
    registry = getattr(module, "_diffusers_hook", None)
    if registry is None or name not in registry.hooks:
        return
    if list(registry.hooks) != [name] or not leads_to_another(module):
        raise RuntimeError(
            f"this {type(module).__name__} has another transformer's cache on it (hooks {list(registry.hooks)}): it is "
            "shared with that one, or a copy of its block; call remove_cache() there before sharing or copying"
        )
    del module._diffusers_hook, module.__dict__["forward"]
