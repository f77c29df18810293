"""Build of the optional extension ``largebatch._C``; all metadata is in pyproject.toml.

The extension uses the libtorch stable ABI and, if it can, Python's limited API, so that one wheel
serves every CPython >= 3.10 and every torch >= 2.11. Environment variables:

- ``CXX``: the C++ compiler (default ``g++``, else ``c++``). None works: pure Python is installed.
- ``LARGEBATCH_CUDA``: ``0`` leaves the CUDA kernels out, ``1`` makes their absence an error.
  Otherwise they are built when ``nvcc`` is found (``CUDA_HOME``, else ``PATH``).
- ``TORCH_CUDA_ARCH_LIST``: architectures as torch spells them; by default those of
  ``7.5;8.0;9.0;10.0;12.0`` that nvcc knows.
- ``LARGEBATCH_SANITIZE=1``: an instrumented CPU build (ASan and UBSan) for the tests.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.resolve()
CSRC = ROOT / "csrc"
OLDEST_PYTHON = (3, 10)
TORCH_TARGET_VERSION = "0x020b000000000000"  # 2.11: the stable ABI that the sources may use
CUDA_ARCHITECTURES = ("7.5", "8.0", "9.0", "10.0", "12.0")
LIBRARY = "_C.abi3.so"
RECORD = "_build.json"  # beside the library: why a part was left out, for which GPUs there is code


class BuildFailed(Exception):
    """One way to build did not work; the message says why."""


def torch_includes() -> list[Path]:
    """Return torch's header folders without importing torch, which would cost seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise BuildFailed("torch is not installed in the build environment")
    return [Path(spec.origin).parent / "include"]


def torch_libraries() -> Path:
    """Return the folder of libtorch_cpu.so."""
    return torch_includes()[0].parent / "lib"


def find_cxx() -> str:
    """Return the C++ compiler, having checked that it runs."""
    named = os.environ.get("CXX")
    for name in [named] if named else ["g++", "c++", "clang++"]:
        command = name.split()
        if shutil.which(command[0]):
            probe = subprocess.run([*command, "--version"], capture_output=True, text=True)
            if probe.returncode == 0:
                return name
    raise BuildFailed(f"no C++ compiler: {named or 'g++'} was not found or does not run")


def find_nvcc() -> tuple[str | None, str]:
    """Return nvcc, or None and the reason why CUDA kernels are not to be built."""
    wish = os.environ.get("LARGEBATCH_CUDA", "")
    if wish not in ("", "0", "1"):
        raise SystemExit(f"LARGEBATCH_CUDA={wish!r}: choose 0 or 1, or leave it unset")
    if wish == "0" or os.environ.get("LARGEBATCH_SANITIZE") == "1":
        return None, "LARGEBATCH_CUDA=0" if wish == "0" else "LARGEBATCH_SANITIZE=1"
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    in_home = Path(home) / "bin" / "nvcc" if home else None
    found = str(in_home) if in_home and in_home.exists() else shutil.which("nvcc")
    if found is None and wish == "1":
        raise SystemExit("LARGEBATCH_CUDA=1 but nvcc was not found: set CUDA_HOME or PATH")
    return found, "nvcc was not found"


def find_ninja() -> str:
    """Return ninja: the package's own program, else the one on PATH."""
    if importlib.util.find_spec("ninja"):
        import ninja

        return str(Path(ninja.BIN_DIR) / "ninja")
    found = shutil.which("ninja")
    if found is None:
        raise BuildFailed("ninja is not installed in the build environment")
    return found


def architectures(nvcc: str) -> list[str]:
    """Return what to compile for, as ``9.0`` or ``9.0+PTX``; the last one always carries PTX."""
    wish = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(" ", ";")
    entries = [name for name in wish.split(";") if name]
    if not entries:
        asked = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True)
        known = asked.stdout.split() if asked.returncode == 0 else []
        entries = [
            name
            for name in CUDA_ARCHITECTURES
            if not known or f"compute_{name.replace('.', '')}" in known
        ]
        if not entries:
            raise BuildFailed(f"nvcc knows none of {', '.join(CUDA_ARCHITECTURES)}")
    return [*entries[:-1], entries[-1].removesuffix("+PTX") + "+PTX"]


def architecture_flags(names: list[str]) -> list[str]:
    """Translate ``9.0`` and ``9.0+PTX`` into nvcc's flags."""
    flags = []
    for name in names:
        number = name.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if name.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def quote(path: Path) -> str:
    """Write a path for the shell inside a ninja file."""
    return shlex.quote(str(path)).replace("$", "$$")


def escape(path: Path) -> str:
    """Write a path for ninja itself."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def sources(pattern: str) -> list[Path]:
    """Return the sources of the extension; those of csrc/comm are compiled on first use instead."""
    return sorted(path for path in CSRC.rglob(pattern) if path.parent.name != "comm")


def ninja_file(cxx: str, nvcc: str | None) -> str:
    """Return the text of build.ninja: one rule a compiler, one edge a source."""
    sanitize = os.environ.get("LARGEBATCH_SANITIZE") == "1"
    python_include = Path(sysconfig.get_paths()["include"])
    includes = [f"-I{quote(CSRC)}", *(f"-isystem {quote(path)}" for path in torch_includes())]
    if (python_include / "Python.h").exists():
        includes.append(f"-isystem {quote(python_include)}")
    version = f"0x{OLDEST_PYTHON[0]:02X}{OLDEST_PYTHON[1]:02X}0000"
    # Without contraction every instruction set rounds alike, so AVX-512, AVX2 and NEON give one
    # set of bits; the kernels wait for memory, not for multiply-adds.
    common = [
        "-std=c++17",
        "-fPIC",
        "-fvisibility=hidden",
        f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}",
        f"-DPy_LIMITED_API={version}",
        *(["-DLARGEBATCH_CUDA"] if nvcc else []),
    ]
    optimize = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra"]
    if sanitize:
        optimize = ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined"]
        optimize += ["-fno-sanitize-recover=all", "-ffp-contract=off", "-DLARGEBATCH_SANITIZE"]
    link = [f"-L{quote(torch_libraries())}", "-ltorch_cpu", "-ldl"]
    lines = [
        "ninja_required_version = 1.3",
        f"cxx = {cxx}",
        f"cxxflags = {' '.join([*common, *optimize, *includes])}",
        "rule cxx",
        "  command = $cxx -MMD -MF $out.d $cxxflags -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
    ]
    if nvcc:
        host = [word for word in cxx.split() if not word.startswith("-")][-1]  # not its launcher
        cuda_flags = [
            "-O3",
            "-std=c++17",
            "-lineinfo",  # compute-sanitizer and Nsight name lines by it
            "-Xfatbin -compress-all",
            "-Xcompiler -fPIC,-fvisibility=hidden",
            f"-I{quote(CSRC)}",
        ]
        cuda_flags += architecture_flags(architectures(nvcc))
        lines += [
            f"nvcc = {quote(Path(nvcc))} -ccbin {host}",
            f"nvccflags = {' '.join(cuda_flags)}",
            "rule nvcc",
            "  command = $nvcc -MD -MF $out.d $nvccflags -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link",
            "  command = $nvcc -shared -cudart static $in -o $out " + " ".join(link),
        ]
    else:
        shared = "-shared -fsanitize=address,undefined" if sanitize else "-shared"
        lines += [
            "rule link",
            f"  command = $cxx {shared} $in -o $out " + " ".join(link),
        ]
    objects = []
    # The longest first: all cores are busy to the end, and an nvcc that fails does so at once.
    for source in (sources("*.cu") if nvcc else []) + sources("*.cpp"):
        name = source.relative_to(CSRC).as_posix().replace("/", "_") + ".o"
        rule = "nvcc" if source.suffix == ".cu" else "cxx"
        lines.append(f"build {name}: {rule} {escape(source)}")
        objects.append(name)
    lines.append(f"build {LIBRARY}: link {' '.join(objects)}")
    return "\n".join(lines) + "\n"


class BuildPython(build_py):
    """Take along the sources that a machine compiles on first use."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            shutil.copytree(
                CSRC / "comm",
                Path(self.build_lib, "largebatch", "csrc", "comm"),
                dirs_exist_ok=True,
            )


class BuildStable(build_ext):
    """Compile ``largebatch._C`` with ninja; fall back to no CUDA, then to no extension, aloud."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        # Reasons for what is left out; `largebatch doctor` shows them, since pip hides our output.
        record: dict[str, object] = {}
        try:
            record["cuda"] = self.compile(target)
            if not record["cuda"]:
                nvcc, _ = find_nvcc()
                record["architectures"] = architectures(str(nvcc))
        except BuildFailed as error:
            if os.environ.get("LARGEBATCH_CUDA") == "1":
                raise SystemExit(f"LARGEBATCH_CUDA=1, but the build failed: {error}") from None
            target.unlink(missing_ok=True)  # an older build would not fit the package
            record["compiled"] = f"not built: {error}"
            banner(
                f"largebatch is installed WITHOUT compiled ops: {error}\n"
                "It works on the reference ops in plain PyTorch, only slower."
            )
        target.with_name(RECORD).write_text(json.dumps(record) + "\n", encoding="utf-8")

    def compile(self, target: Path) -> str:
        """Build with CUDA where it is wanted and possible; return why CUDA is left out, or ''."""
        cxx, (nvcc, reason) = find_cxx(), find_nvcc()
        if nvcc:
            try:
                self.run_ninja(cxx, nvcc, target)
                return ""
            except BuildFailed as error:
                if os.environ.get("LARGEBATCH_CUDA") == "1":
                    raise
                reason = str(error)
                banner(f"the CUDA kernels of largebatch are left out: {error}")
        self.run_ninja(cxx, None, target)
        return f"built without CUDA kernels: {reason}"

    def run_ninja(self, cxx: str, nvcc: str | None, target: Path) -> None:
        """Compile in a folder of its own for each kind of build, and put the library in place."""
        folder = Path(self.build_temp).resolve() / ("cuda" if nvcc else "cpu")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "build.ninja").write_text(ninja_file(cxx, nvcc))
        jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        done = subprocess.run(
            [find_ninja(), *jobs], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        text = done.stdout.decode(errors="replace")
        if done.returncode != 0:
            print(text, file=sys.stderr)
            errors = [line for line in text.splitlines() if "error" in line.lower()]
            reason = (errors or text.splitlines() or ["no output"])[0]
            raise BuildFailed(f"compilation failed: {reason.strip()[:200]}")
        print(text)
        shutil.copy(folder / LIBRARY, target)

    def get_outputs(self) -> list[str]:
        # A build that fell back has no library: installing must not look for one.
        files = [Path(path) for path in super().get_outputs()]
        files += [file.with_name(RECORD) for file in files]
        return [str(file) for file in files if file.exists()]

    def copy_extensions_to_source(self) -> None:
        for ext in self.extensions:
            Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
            source = Path(self.build_lib, *ext.name.split(".")).with_name(RECORD)
            shutil.copyfile(source, Path(self.get_ext_fullpath(ext.name)).with_name(RECORD))
        super().copy_extensions_to_source()


def banner(text: str) -> None:
    """Print what must not be missed among the build's other lines."""
    print("\n".join(["*" * 78, *(f"* {line}" for line in text.splitlines()), "*" * 78]))
    print(text, file=sys.stderr)


setup(
    ext_modules=[Extension("largebatch._C", [], py_limited_api=True, optional=True)],
    cmdclass={"build_ext": BuildStable, "build_py": BuildPython},
    options={"bdist_wheel": {"py_limited_api": f"cp{OLDEST_PYTHON[0]}{OLDEST_PYTHON[1]}"}},
)
