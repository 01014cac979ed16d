"""Maps the top-level folders to the package `fastjukebox`, and builds the native decoder where there is a compiler.

A top-level package called `kernels` would overwrite Hugging Face's package of that name, so nothing is installed
outside the `fastjukebox` namespace. The metadata is in pyproject.toml.
"""

import runpy
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

PACKAGES = {
    "fastjukebox." + folder.replace("/", "."): folder for folder in ("engine", "engine/cli", "kernels", "distill")
}

# So that a library is not taken for that of later sources.
SOURCES = runpy.run_path("kernels/native_library.py")["sources"](Path("kernels/csrc"))


class OptionalBuild(build_ext):
    """Without a compiler the install goes on; the reason is kept beside the place of the library for `info`."""

    def build_extension(self, ext: Extension) -> None:
        library = Path(self.get_ext_fullpath(ext.name))
        reason = library.parent / "_decode.missing"
        reason.unlink(missing_ok=True)
        try:
            super().build_extension(ext)
        except Exception as error:
            library.unlink(missing_ok=True)
            library.parent.mkdir(parents=True, exist_ok=True)
            reason.write_text(f"{error}\n")
            print(f"warning: the native decoder was not built: {error}")

    def copy_extensions_to_source(self) -> None:
        built = [ext for ext in self.extensions if Path(self.build_lib, self.get_ext_filename(ext.name)).exists()]
        for ext in self.extensions:
            made = Path(self.build_lib, self.get_ext_filename(ext.name))
            folder = Path(self.get_finalized_command("build_py").get_package_dir(ext.name.rpartition(".")[0]))
            # What an earlier build has left, a library of other sources too.
            for name in (made.name, "_decode.missing"):
                (folder / name).unlink(missing_ok=True)
            if (made.parent / "_decode.missing").exists():
                self.copy_file(str(made.parent / "_decode.missing"), str(folder / "_decode.missing"))
        self.extensions, extensions = built, self.extensions
        super().copy_extensions_to_source()
        self.extensions = extensions


setup(
    packages=list(PACKAGES),
    package_dir=PACKAGES,
    package_data={
        "fastjukebox.engine": ["py.typed", "demo/*", "demo/*/*"],
        "fastjukebox.kernels": ["py.typed", "csrc/*", "cuda/*"],
        "fastjukebox.distill": ["py.typed"],
    },
    ext_modules=[
        # A plain library behind ctypes: no Python or PyTorch headers are used.
        Extension(
            "fastjukebox.kernels._decode",
            ["kernels/csrc/decode.cpp"],
            depends=sorted(str(path) for path in Path("kernels/csrc").glob("*.[hi]*")),
            language="c++",
            define_macros=[("FASTJUKEBOX_SOURCES", f'"{SOURCES}"')],
            # Products and sums are fused where the source says so: on every processor the same ones.
            extra_compile_args=["-std=c++17", "-O3", "-ffp-contract=off", "-Wno-psabi", "-Wno-maybe-uninitialized"],
            extra_link_args=["-pthread"],
        )
    ],
    cmdclass={"build_ext": OptionalBuild},
)
