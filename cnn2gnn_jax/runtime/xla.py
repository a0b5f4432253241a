"""Settings of XLA and JAX that a program makes at start-up; importing the package changes neither.

XLA's CPU backend passes whole fusions to the kernel library YNNPACK. For convolutions this costs time: on 2 cores, the
weight gradient of a 3x3 convolution (64 channels, 32x32, batch 100) took 2,150 ms under jaxlib 0.10 and 540 to 940 ms
under 0.12, and 80 to 140 ms without. For reductions, as in BatchNorm, it saves time. The option below therefore names
only reductions and products. Element-wise chains are left out as well: with them, students that train side by side get
other rounding errors than students that train alone.
"""

import importlib.metadata
import os
import pathlib
from typing import Any

import jax

FUSION_OPTION = "--xla_cpu_experimental_ynn_fusion_type"
FUSION_TYPES = ("REDUCE", "INDIVIDUAL_DOT")
# XLA ends the process on an unknown option, so the option is set only for versions with which it was tested.
TESTED_JAXLIB = ("0.10", "0.11", "0.12")


def set_cpu_options() -> None:
    """Adds the fusion option to the environment variable `XLA_FLAGS`, unless the user has set that option there.

    XLA reads the variable when JAX first uses a device, so call this at the start of a program. It does nothing with a
    version of jaxlib that is not in `TESTED_JAXLIB`. The option does not affect computations on other devices.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    minor_version = ".".join(importlib.metadata.version("jaxlib").split(".")[:2])
    if FUSION_OPTION not in flags and minor_version in TESTED_JAXLIB:
        types = ",".join(f"LIBRARY_FUSION_TYPE_{name}" for name in FUSION_TYPES)
        os.environ["XLA_FLAGS"] = f"{flags} {FUSION_OPTION}={types}".strip()


def enable_compilation_cache(config: Any) -> None:
    """Turns on JAX's compilation cache, in `<cache_dir>/compilation`, if the config's `compilation_cache` is True.

    If the user has set a folder for the cache, as by `JAX_COMPILATION_CACHE_DIR`, JAX uses that folder.
    """
    if config.compilation_cache and not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        folder = pathlib.Path(config.cache_dir).expanduser() / "compilation"
        jax.config.update("jax_compilation_cache_dir", str(folder))
        # By default JAX stores only programs that took a second to compile, and a run has dozens of smaller ones.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
