"""Triton's interpreter, faster: it patches the whole language anew at every call of a device function."""

import importlib.util
import os


def patch_the_language_once():
    """Leaves out what finds the language patched already, by the kernel that calls: half of the time of our kernels."""
    if os.environ.get("TRITON_INTERPRET") != "1" or importlib.util.find_spec("triton") is None:
        return
    from triton import language
    from triton.runtime import interpreter

    patch = interpreter._patch_lang

    def patch_once(function):
        used = [
            each for each in (language, language.core) if any(each is held for held in function.__globals__.values())
        ]
        patched = used and not any(language.core.is_builtin(each.arange) for each in used)
        return None if patched else patch(function)

    interpreter._patch_lang = patch_once
