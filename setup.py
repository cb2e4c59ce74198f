"""Adds the C++ kernels to the package; all else is in `pyproject.toml`."""

from __future__ import annotations

import logging
import platform
import sys
from pathlib import Path
from typing import ClassVar

from setuptools import Command, Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

sys.path.insert(0, str(Path(__file__).parent / "src"))

from itemwise.ops import build_cpu  # noqa: E402


class BuildKernels(Command):
    """Compiles the kernels: for a wheel those of all processors, in a source tree this one's."""

    user_options: ClassVar[list[tuple[str, str, str]]] = []
    editable_mode = False  # setuptools sets it
    build_lib: str | None = None

    def initialize_options(self) -> None:  # noqa: D102 asked for by setuptools
        pass

    def finalize_options(self) -> None:  # noqa: D102
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def run(self) -> None:  # noqa: D102
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        if self.editable_mode:
            build_cpu.build(build_cpu.levels_here())
            return
        package = Path(str(self.build_lib)) / "itemwise"
        build_cpu.build(build_cpu.levels_of(platform.machine()), package / "ops")

    def get_source_files(self) -> list[str]:
        """None: the list of the package's data has them."""
        return []

    def get_outputs(self) -> list[str]:
        """None that an editable install would have to link to."""
        return []

    def get_output_mapping(self) -> dict[str, str]:
        """None, as for `get_outputs`."""
        return {}


class Build(build):
    """As ever, then the kernels."""

    sub_commands: ClassVar = [*build.sub_commands, ("build_kernels", None)]


class Wheel(bdist_wheel):
    """A wheel for any Python of one platform: kernels are loaded as shared libraries."""

    def get_tag(self) -> tuple[str, str, str]:  # noqa: D102
        return "py3", "none", super().get_tag()[2]


class WithKernels(Distribution):
    """A package that is not the same on all platforms."""

    def has_ext_modules(self) -> bool:  # noqa: D102
        return True


setup(
    distclass=WithKernels,
    cmdclass={"build": Build, "build_kernels": BuildKernels, "bdist_wheel": Wheel},
    setup_requires=build_cpu.build_requirements(),
)
