"""The shipped patch rules: what makes someone else's CMake project build the same binary on every machine.

Each rule has `expect: any`: a project that does everything right, as librwkv does, is not changed at all. A recipe's
rule with the name of a shipped one takes its place.

Baselines are the processors that every machine of the last decade has: x86-64-v2 (2009), ARMv8-A, Apple M1.
"""

from __future__ import annotations

from collections.abc import Sequence

from rwkvflow.worker.build.cmake_patch import CMakeRule

# What the build paths read as in binaries, headers and definitions.
NEUTRAL = "/rwkvflow"

# processor as in the platform name -> (zig's -mcpu, the flag of gcc and clang)
BASELINES = {
    "linux-x86_64": ("x86_64_v2", "-march=x86-64-v2"),
    "windows-x86_64": ("x86_64_v2", "-march=x86-64-v2"),
    "macos-x86_64": ("x86_64_v2", "-march=x86-64-v2"),
    "linux-aarch64": ("generic", "-march=armv8-a"),
    "windows-aarch64": ("generic", "-march=armv8-a"),
    "macos-arm64": ("apple_m1", "-mcpu=apple-m1"),
}

# What CMAKE_SYSTEM_PROCESSOR may read for a processor; the first is what a wrong one becomes.
PROCESSORS = {
    "x86_64": ("x86_64", "amd64", "AMD64", "x64"),
    "aarch64": ("aarch64", "arm64", "ARM64"),
    "arm64": ("arm64", "aarch64", "ARM64"),
    "wasm32": ("wasm32",),
}

# What the compilers read their flags from, by generator.
COMPILE = ("build.ninja", "**/flags.make", "**/link.txt", "compile_commands.json", "**/*.rsp")
# ... and where in them: not in a project's own commands, for which -g or a path means something else.
FLAG_LINES = r"^(?!  (?:COMMAND|PRE_LINK|POST_BUILD) = ).+$"
GENERATED = tuple(f"**/*.{suffix}" for suffix in ("h", "hh", "hpp", "hxx", "inc", "c", "cc", "cpp", "cxx", "def"))
STATE = ("CMakeCache.txt", "CMakeFiles/*/CMakeSystem.cmake")

# A flag stands alone between spaces or quotes.
BEFORE, AFTER = r"(?<![^\s\"'=])", r"(?![^\s\"'])"

X86_FLAGS = (
    r"-m(?:mmx|sse[0-9a.]*|ssse3|avx[a-z0-9.]*|fma4?|f16c|bmi2?|lzcnt|popcnt|aes|pclmul|sha|xsave\w*|abm|movbe|"
    r"amx-\w+|gfni|vaes|vpclmulqdq)"
)
ARM_FLAGS = r"-m(?:fpu|float-abi|fp16-format)=\S+|-m(?:thumb|arm|neon)"


def baseline_cpu(platform: str) -> str:
    """zig's -mcpu for a platform; the target's own generic processor where no baseline is stated."""
    return BASELINES.get(platform, ("baseline", ""))[0]


def shipped_rules(platform: str, toolchain: str) -> tuple[CMakeRule, ...]:
    """The rules for a target platform (<system>-<processor>) and a toolchain ("zig" or "system").

    They are applied in this order. Those for STATE files come into force because CMake is run again after them.
    """
    processor = platform.partition("-")[2]
    return (
        *_processor(processor),
        *_native(platform, toolchain),
        *_foreign(processor),
        *_names(processor, toolchain),
        *_paths(),
    )


def with_recipe(shipped: Sequence[CMakeRule], recipe: Sequence[CMakeRule]) -> tuple[CMakeRule, ...]:
    """Shipped rules, those with the name of a recipe's rule left out, then the recipe's."""
    replaced = {rule.name for rule in recipe}
    return (*(rule for rule in shipped if rule.name not in replaced), *recipe)


def _rule(name: str, files: Sequence[str], pattern: str, replace: str) -> CMakeRule:
    within = FLAG_LINES if files is COMPILE else ""
    return CMakeRule(name, tuple(files), pattern, replace, "any", {}, shipped=True, within=within)


def _processor(processor: str) -> tuple[CMakeRule, ...]:
    right = PROCESSORS.get(processor)
    if right is None:
        return ()
    names = "|".join(right)
    return (
        _rule(
            "processor-name",
            STATE,
            rf'^(set\(CMAKE_SYSTEM_PROCESSOR "|CMAKE_SYSTEM_PROCESSOR:[A-Z]+=)(?!(?:{names})(?:"|$))[^"\n]*',
            rf"\g<1>{right[0]}",
        ),
    )


def _native(platform: str, toolchain: str) -> tuple[CMakeRule, ...]:
    cpu, flag = BASELINES.get(platform, ("baseline", ""))
    baseline = f"-mcpu={cpu}" if toolchain == "zig" else flag
    arm = platform.endswith(("aarch64", "arm64"))
    # For gcc and clang on x86, -mcpu means -mtune; on ARM it chooses the instruction set.
    chooses = "arch|cpu" if arm or toolchain == "zig" else "arch"
    return (
        _rule("native-baseline", COMPILE, rf"{BEFORE}-m(?:{chooses})=native(?:\+\w+)*{AFTER}", baseline),
        # Tuning changes the code as well; zig takes it for a choice of processor.
        _rule("native-tuning", COMPILE, rf"{BEFORE}-m(?:tune|cpu)=native(?:\+\w+)*{AFTER}[ \t]?", ""),
    )


def _foreign(processor: str) -> tuple[CMakeRule, ...]:
    arm = processor in ("aarch64", "arm64")
    x86 = processor == "x86_64"
    foreign = []
    if not x86:
        foreign += [
            X86_FLAGS,
            r"-m(?:arch|cpu|tune)=(?:x86[-_]64\S*|haswell|broadwell|skylake\S*|znver\d|core2|nehalem)",
        ]
    if not arm:
        foreign += [r"-m(?:arch|cpu|tune)=(?:armv\d\S*|cortex-\S+|neoverse-\S+|apple-\S+)"]
    # 64-bit ARM compilers refuse these too: they are 32-bit ARM's.
    foreign.append(ARM_FLAGS)
    return (_rule("foreign-instructions", COMPILE, rf"{BEFORE}(?:{'|'.join(foreign)}){AFTER}[ \t]?", ""),)


def _names(processor: str, toolchain: str) -> tuple[CMakeRule, ...]:
    # zig refuses the spellings of gcc and clang for -march and names processors with underscores.
    if toolchain != "zig":
        return ()
    if processor == "x86_64":
        return (
            _rule("zig-level", COMPILE, rf"{BEFORE}-march=x86-64{AFTER}", "-mcpu=x86_64"),
            _rule("zig-level-numbered", COMPILE, rf"{BEFORE}-march=x86-64-v([234]){AFTER}", r"-mcpu=x86_64_v\1"),
        )
    if processor in ("aarch64", "arm64"):
        return (_rule("zig-armv8", COMPILE, rf"{BEFORE}-march=armv8-a{AFTER}", "-mcpu=generic"),)
    return ()


def _paths() -> tuple[CMakeRule, ...]:
    prefix_map = f"-ffile-prefix-map=@ROOT@={NEUTRAL}"
    inside = r"@ROOT@(?=/(?:source|build)\b)"
    return (
        # Debug information is stripped anyway, and link-time optimization with it is not reproducible.
        _rule("debug-info", COMPILE, rf"{BEFORE}-g(?:gdb)?[0-3]?{AFTER}[ \t]?", ""),
        # __FILE__: the toolchain file gives this flag; here for projects that set CMAKE_C_FLAGS themselves.
        _rule(
            "file-prefix", ("build.ninja",), r"^  FLAGS = (?!.*-ffile-prefix-map=@ROOT@)", rf"  FLAGS = {prefix_map} "
        ),
        _rule(
            "file-prefix-absent",
            ("build.ninja",),
            r"^(  DEP_FILE = .*\n)(?!  FLAGS = )",
            rf"\g<1>  FLAGS = {prefix_map}\n",
        ),
        _rule(
            "file-prefix-make",
            ("**/flags.make",),
            r"^((?:C|CXX|ASM)_FLAGS(?:_[\w.]+)? =)(?!.*-ffile-prefix-map=@ROOT@)",
            rf"\g<1> {prefix_map}",
        ),
        # A header's name in a definition is for #include and must stay; other paths are data.
        _rule(
            "path-in-definition",
            COMPILE,
            rf"(-D\w+=[^\s@]*?){inside}(?![^\s]*\.(?:h|hh|hpp|hxx|inc|inl|def)\b)",
            rf"\g<1>{NEUTRAL}",
        ),
        _rule("path-in-generated", GENERATED, rf'(?<!#include ")(?<!#include <){inside}', NEUTRAL),
        _rule("rpath", COMPILE, r"-Wl,-rpath[,=]@ROOT@[^\s\"']*[ \t]?", ""),
    )
