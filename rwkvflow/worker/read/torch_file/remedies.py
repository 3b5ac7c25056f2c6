"""How a file that is not read here becomes one that is: commands that a user may copy, with torch at hand.

A test runs each of them on the file that it is for. They keep what is a tensor or an array, at any depth of dicts, and
leave out the rest: optimizers' settings, classes, random states.
"""

from __future__ import annotations

from typing import Final

_TENSORS: Final = (
    "f = lambda x: {k: f(v) for k, v in x.items() if isinstance(v, (dict, numpy.ndarray, torch.Tensor))} "
    "if isinstance(x, dict) else torch.as_tensor(x).contiguous(); "
)


def _command(*lines: str) -> str:
    return f"python -c '{''.join(lines)}'"


#: What torch reads without running it.
SAVE_AGAIN: Final = _command(
    'import torch; torch.save(torch.load("old.pth", map_location="cpu", weights_only=True), "new.pth")'
)
#: What torch reads by running it: dicts of anything, and modules.
RUN_AND_SAVE: Final = _command(
    "import numpy, torch; ",
    _TENSORS,
    'x = torch.load("old.pth", map_location="cpu", weights_only=False); ',
    'torch.save(f(x.state_dict() if isinstance(x, torch.nn.Module) else x), "new.pth")',
)
#: A bare pickle of arrays or tensors, which torch does not read.
UNPICKLE_AND_SAVE: Final = _command(
    "import numpy, pickle, torch; ",
    _TENSORS,
    'torch.save(f(pickle.load(open("old.pkl", "rb"))), "new.pth")',
)
UNPACK_SCRIPT: Final = _command(
    "import torch; ",
    'x = torch.jit.load("old.pt", map_location="cpu").state_dict(); ',
    'torch.save({k: v.detach() for k, v in x.items()}, "new.pth")',
)
UNPACK_NUMPY: Final = _command(
    "import numpy, torch; ",
    'torch.save({k: torch.as_tensor(v) for k, v in numpy.load("old.npz").items()}, "new.pth")',
)
NOT_RUN: Final = "nothing of this file was run"
IF_TRUSTED: Final = "If you trust where it comes from, run on a machine that you can throw away: "
#: For a part or the folder of a DeepSpeed checkpoint. Older versions of the script write a file, newer ones a folder.
GATHERING: Final = (
    "its tensors are split over the files of a folder. If you trust where that comes from, run in it, where DeepSpeed "
    "left the script: python zero_to_fp32.py . ../gathered, and name what it writes, ../gathered"
)
#: For what is in a torch file beside tensors.
REMEDY: Final = f"A checkpoint holds only tensors; {NOT_RUN}. {IF_TRUSTED}{RUN_AND_SAVE}"
#: For files in which torch.save wrote a storage's place as Python shows it.
PROTOCOL_0: Final = (
    "Torch itself cannot load such a file: save the model again where it was made, with pickle_protocol=2, which is "
    "torch.save's own"
)


def for_name(module: str) -> str:
    """What to do about a pickle that asks for something of this module."""
    if module.partition(".")[0] == "deepspeed":
        return f"It is a part of a DeepSpeed checkpoint; {NOT_RUN}: {GATHERING}"
    return REMEDY
