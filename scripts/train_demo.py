"""Trains the demo checkpoints in recipes/demo/: tiny byte-level models of versions 4, 5.2, 6 and 7, on a CPU.

    python3 scripts/train_demo.py --version 7 [--out recipes/demo/rwkv7-demo.pth]
    python3 scripts/train_demo.py --domains   # recipes/demo/rwkv7-domains.pth, and its vocabulary

The second is 256 wide, reads tokens of World's kind, and learned the five domains of scripts/domains.py: K types and
their search mean something on it.

Needs torch. Ends at 0.145 to 0.16 nats a byte with the defaults, after about five minutes a version on one core.
Seeded; on one machine with one thread the same command gives the same file. Other machines and torch versions round
differently, so expect the same loss (recipes/demo/README.md has the figures), not the same bytes.
Parameters carry the names and shapes of the author's own checkpoints (github.com/BlinkDL/RWKV-LM), saved as bf16.
"""

from __future__ import annotations

import argparse
import io
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from demo_stories import corpus
from domains import DomainVocabulary, training_text
from torch.nn import functional as F  # noqa: N812 - torch's own habit

HEAD = 64
CHUNK = 16  # tokens that the recurrences of versions 5 to 7 treat as one matrix product
Params = dict[str, torch.Tensor]
DEMO = Path(__file__).resolve().parent.parent / "recipes" / "demo"


@dataclass(frozen=True)
class Size:
    """Of a model; `inner` is the width of the channel mix, of version 7 alone, `rank` that of the low-rank pairs."""

    layers: int = 4
    width: int = 128
    vocab: int = 256
    rank: int = 16
    inner: int = 512


def initial(version: str, size: Size) -> Params:
    """Fresh fp32 parameters, by the author's names."""
    p: Params = {}
    layers, width, rank = size.layers, size.width, size.rank
    heads = width // HEAD

    def matrix(name: str, rows: int, cols: int, gain: float = 1.0) -> None:
        p[name] = torch.randn(rows, cols) * (gain / math.sqrt(cols))

    def norm(name: str) -> None:
        p[f"{name}.weight"], p[f"{name}.bias"] = torch.ones(width), torch.zeros(width)

    ramp = torch.arange(width) / width
    p["emb.weight"] = torch.randn(size.vocab, width) * 0.02
    for layer in range(layers):
        deep = 1 - layer / layers
        block = f"blocks.{layer}."
        att, ffn = block + "att.", block + "ffn."
        if layer == 0:
            norm(block + "ln0")
        norm(block + "ln1")
        norm(block + "ln2")
        mix = (ramp**deep).view(1, 1, -1)
        if version == "4":
            for name in "kvr":
                p[f"{att}time_mix_{name}"] = mix.clone()
            p[att + "time_decay"] = -5 + 8 * ramp ** (0.7 + 1.3 * layer / (layers - 1))
            p[att + "time_first"] = torch.ones(width) * math.log(0.3)
        elif version == "5.2":
            for name in "kvrg":
                p[f"{att}time_mix_{name}"] = mix.clone()
            p[att + "time_decay"] = (-6 + 5 * ramp).view(heads, HEAD)
            p[att + "time_faaaa"] = torch.full((heads, HEAD), 0.3)
        elif version == "6":
            for name in "xwkvrg":
                p[f"{att}time_maa_{name}"] = 1 - mix
            p[att + "time_maa_w1"] = torch.randn(width, 5 * rank) * 1e-2
            p[att + "time_maa_w2"] = torch.randn(5, rank, width) * 1e-2
            p[att + "time_decay"] = (-6 + 5 * ramp).view(1, 1, -1)
            p[att + "time_decay_w1"] = torch.randn(width, rank) * 1e-2
            p[att + "time_decay_w2"] = torch.randn(rank, width) * 1e-2
            p[att + "time_faaaa"] = torch.full((heads, HEAD), 0.3)
        else:
            for name in "rwkvag":
                p[f"{att}x_{name}"] = 1 - mix
            p[att + "w0"] = (-6 + 6 * ramp + 0.5).view(1, 1, -1)
            p[att + "a0"] = torch.zeros(1, 1, width)
            lora = "wag" if layer == 0 else "wavg"
            if layer:
                p[att + "v0"] = torch.ones(1, 1, width)
            for name in lora:
                p[f"{att}{name}1"] = torch.randn(width, rank) * 1e-2 * (10 if name == "g" else 1)
                p[f"{att}{name}2"] = torch.randn(rank, width) * 0.1
            p[att + "k_k"] = torch.full((1, 1, width), 0.85)
            p[att + "k_a"] = torch.ones(1, 1, width)
            p[att + "r_k"] = torch.zeros(heads, HEAD)
        for name in ("receptance", "key", "value"):
            matrix(f"{att}{name}.weight", width, width, 0.6)
        if version in ("5.2", "6"):
            matrix(att + "gate.weight", width, width, 0.6)
        matrix(att + "output.weight", width, width, 0.3)
        if version != "4":
            norm(att + "ln_x")
        # The gate of 5.2 and 6 is paid for with a narrower channel mix, as in the author's models.
        inner = {"5.2": width * 7 // 2, "6": width * 3}.get(version, size.inner)
        if version == "7":
            p[ffn + "x_k"] = 1 - mix
        elif version == "6":
            p[ffn + "time_maa_k"], p[ffn + "time_maa_r"] = 1 - mix, 1 - mix
        else:
            p[ffn + "time_mix_k"], p[ffn + "time_mix_r"] = mix.clone(), mix.clone()
        matrix(ffn + "key.weight", inner, width)
        if version != "7":
            matrix(ffn + "receptance.weight", width, width, 0.5)
        matrix(ffn + "value.weight", width, inner, 0.5)
    norm("ln_out")
    matrix("head.weight", size.vocab, width, 0.5)
    return p


def layer_norm(p: Params, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"])


def before(x: torch.Tensor) -> torch.Tensor:
    """Each token's predecessor, zeros for the first: [B,T,C]."""
    return F.pad(x, (0, 0, 1, -1))


def wkv4(k: torch.Tensor, v: torch.Tensor, decay: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """Version 4's weighted average over the past, exponents kept relative to the largest seen: [B,T,C]."""
    aa, bb = torch.zeros_like(k[:, 0]), torch.zeros_like(k[:, 0])
    pp = torch.full_like(k[:, 0], -1e30)
    outputs = []
    for kt, vt in zip(k.unbind(1), v.unbind(1), strict=True):
        now = first + kt
        top = torch.maximum(pp, now)
        e1, e2 = torch.exp(pp - top), torch.exp(now - top)
        outputs.append((e1 * aa + e2 * vt) / (e1 * bb + e2))
        past = decay + pp
        top = torch.maximum(past, kt)
        e1, e2 = torch.exp(past - top), torch.exp(kt - top)
        aa, bb, pp = e1 * aa + e2 * vt, e1 * bb + e2, top
    return torch.stack(outputs, 1)


def chunked(
    r: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_w: torch.Tensor,
    u: torch.Tensor | None = None,
    ab: tuple[torch.Tensor, ...] = (),
) -> torch.Tensor:
    """The matrix-state recurrences, CHUNK tokens at a time; all of shape [B,H,T,N], state S of [B,H,N,N] (value × key).

    Versions 5 and 6 (u given): y_t = (S_{t-1} + v_t (u k_t)^T) r_t,  S_t = S_{t-1} diag(w_t) + v_t k_t^T.
    Version 7 (ab given):       S_t = S_{t-1} (diag(w_t) + a_t b_t^T) + v_t k_t^T,  y_t = S_t r_t.
    With P_t the product of the decays up to t, everything inside a chunk is a product of matrices whose rows are
    scaled by P_t and 1/P_t; version 7's S_{t-1} a_t then solves a unit triangular system.
    """
    batch, heads, length, size = r.shape
    state = torch.zeros(batch, heads, size, size)
    lower = torch.tril(torch.ones(CHUNK, CHUNK), -1)
    outputs = []
    for start in range(0, length, CHUNK):
        part = slice(start, start + CHUNK)
        rt, kt, vt, lw = r[:, :, part], k[:, :, part], v[:, :, part], log_w[:, :, part]
        total = lw.cumsum(2)
        up, last = torch.exp(-total), torch.exp(total[:, :, -1:])
        before_t = torch.exp(total - lw)
        if u is not None:
            reach = rt * before_t
            scores = (reach @ (kt * up).transpose(2, 3)) * lower
            now = (rt * u * kt).sum(-1, keepdim=True)
            outputs.append(reach @ state.transpose(2, 3) + scores @ vt + now * vt)
            state = (state + vt.transpose(2, 3) @ (kt * up)) * last
        else:
            at, bt = ab[0][:, :, part] * before_t, ab[1][:, :, part] * up
            keys = kt * up
            known = at @ state.transpose(2, 3) + ((at @ keys.transpose(2, 3)) * lower) @ vt
            system = torch.eye(CHUNK) - (at @ bt.transpose(2, 3)) * lower
            delta = torch.linalg.solve_triangular(system, known, upper=False, unitriangular=True)
            reach, upto = rt * torch.exp(total), lower + torch.eye(CHUNK)
            outputs.append(
                reach @ state.transpose(2, 3)
                + ((reach @ keys.transpose(2, 3)) * upto) @ vt
                + ((reach @ bt.transpose(2, 3)) * upto) @ delta
            )
            state = (state + vt.transpose(2, 3) @ keys + delta.transpose(2, 3) @ bt) * last
    return torch.cat(outputs, 2)


def split(x: torch.Tensor) -> torch.Tensor:
    """[B,T,C] to [B,H,T,N]."""
    return x.view(*x.shape[:2], -1, HEAD).transpose(1, 2)


def merged_norm(p: Params, att: str, y: torch.Tensor) -> torch.Tensor:
    """Group norm of each head, back to [B,T,C]."""
    heads = y.shape[1]
    flat = y.transpose(1, 2).reshape(-1, heads * HEAD)
    out = F.group_norm(flat, heads, p[att + "ln_x.weight"], p[att + "ln_x.bias"], eps=64e-5)
    return out.view(y.shape[0], -1, heads * HEAD)


def time_mix(
    version: str, p: Params, layer: int, x: torch.Tensor, v_first: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    att = f"blocks.{layer}.att."
    w = {name: p[f"{att}{name}.weight"].T for name in ("receptance", "key", "value", "output")}
    shifted = before(x)
    if version in ("4", "5.2"):
        names = "kvr" if version == "4" else "kvrg"
        m = {n: torch.lerp(shifted, x, p[f"{att}time_mix_{n}"]) for n in names}
    elif version == "6":
        sx = shifted - x
        low = torch.tanh((x + sx * p[att + "time_maa_x"]) @ p[att + "time_maa_w1"])
        low = low.view(*x.shape[:2], 5, -1).permute(2, 0, 1, 3)
        shifts = torch.einsum("ibtd,idc->ibtc", low, p[att + "time_maa_w2"])
        m = {n: x + sx * (p[f"{att}time_maa_{n}"] + shifts[i]) for i, n in enumerate("wkvrg")}
    else:
        m = {n: x + (shifted - x) * p[f"{att}x_{n}"] for n in "rwkvag"}
    r, k, v = m["r"] @ w["receptance"], m["k"] @ w["key"], m["v"] @ w["value"]
    if version == "4":
        y = wkv4(k, v, -torch.exp(p[att + "time_decay"]), p[att + "time_first"])
        return (torch.sigmoid(r) * y) @ w["output"], None
    if version in ("5.2", "6"):
        decay = p[att + "time_decay"].view(1, 1, -1)
        if version == "6":
            decay = decay + torch.tanh(m["w"] @ p[att + "time_decay_w1"]) @ p[att + "time_decay_w2"]
        decay = (-torch.exp(decay)).expand_as(r)
        u = p[att + "time_faaaa"].view(1, -1, 1, HEAD)
        y = merged_norm(p, att, chunked(split(r), split(k), split(v), split(decay), u=u))
        return (y * F.silu(m["g"] @ p[att + "gate.weight"].T)) @ w["output"], None
    log_w = -math.exp(-0.5) * torch.sigmoid(p[att + "w0"] + torch.tanh(m["w"] @ p[att + "w1"]) @ p[att + "w2"])
    a = torch.sigmoid(p[att + "a0"] + (m["a"] @ p[att + "a1"]) @ p[att + "a2"])
    g = torch.sigmoid(m["g"] @ p[att + "g1"]) @ p[att + "g2"]
    kk = F.normalize(split(k * p[att + "k_k"]), dim=-1)
    k = k * (1 + (a - 1) * p[att + "k_a"])
    if v_first is None:
        v_first = v
    else:
        v = torch.lerp(v, v_first, torch.sigmoid(p[att + "v0"] + (m["v"] @ p[att + "v1"]) @ p[att + "v2"]))
    y = chunked(split(r), split(k), split(v), split(log_w), ab=(-kk, kk * split(a)))
    y = merged_norm(p, att, y)
    bonus = (split(r) * split(k) * p[att + "r_k"].view(1, -1, 1, HEAD)).sum(-1, keepdim=True) * split(v)
    return ((y + bonus.transpose(1, 2).reshape(y.shape)) * g) @ w["output"], v_first


def channel_mix(version: str, p: Params, layer: int, x: torch.Tensor) -> torch.Tensor:
    ffn = f"blocks.{layer}.ffn."
    shifted = before(x)
    if version in ("4", "5.2"):
        xk, xr = (torch.lerp(shifted, x, p[f"{ffn}time_mix_{n}"]) for n in "kr")
    elif version == "6":
        xk, xr = (x + (shifted - x) * p[f"{ffn}time_maa_{n}"] for n in "kr")
    else:
        xk, xr = x + (shifted - x) * p[ffn + "x_k"], None
    out = torch.relu(xk @ p[ffn + "key.weight"].T).square() @ p[ffn + "value.weight"].T
    return out if xr is None else torch.sigmoid(xr @ p[ffn + "receptance.weight"].T) * out


def forward(version: str, p: Params, tokens: torch.Tensor) -> torch.Tensor:
    """Logits [B,T,V] of tokens [B,T]; T is a multiple of CHUNK."""
    x = layer_norm(p, "blocks.0.ln0", F.embedding(tokens, p["emb.weight"]))
    v_first = None
    for layer in range(1 + max(int(name.split(".")[1]) for name in p if name.startswith("blocks."))):
        y, v_first = time_mix(version, p, layer, layer_norm(p, f"blocks.{layer}.ln1", x), v_first)
        x = x + y
        x = x + channel_mix(version, p, layer, layer_norm(p, f"blocks.{layer}.ln2", x))
    return layer_norm(p, "ln_out", x) @ p["head.weight"].T


def train(
    version: str, size: Size, data: torch.Tensor, steps: int, batch: int, length: int, rate: float, seed: int
) -> tuple[Params, float]:
    """Parameters, and the mean loss of the last tenth of the steps in nats a token of `data`."""
    torch.manual_seed(seed)
    p = {name: value.requires_grad_() for name, value in initial(version, size).items()}
    matrices = [value for name, value in p.items() if name.endswith(".weight") and value.dim() == 2]
    others = [value for value in p.values() if not any(value is m for m in matrices)]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), eps=1e-12)
    losses = []
    started = time.monotonic()
    for step in range(steps):
        warm = min(1.0, (step + 1) / 30)
        scale = warm * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate * scale
        starts = torch.randint(0, len(data) - length - 1, (batch,))
        window = torch.stack([data[i : i + length + 1] for i in starts.tolist()])
        loss = F.cross_entropy(forward(version, p, window[:, :-1]).flatten(0, 1), window[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(p.values()), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        if step % 25 == 0 or step == steps - 1:
            recent = sum(losses[-25:]) / len(losses[-25:])
            print(f"v{version} step {step:4d} loss {recent:.3f} {time.monotonic() - started:.0f} s", flush=True)
    tail = losses[-max(1, steps // 10) :]
    return p, sum(tail) / len(tail)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", choices=("4", "5.2", "6", "7"), default="7")
    parser.add_argument("--domains", action="store_true", help="the model of five domains")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.domains:
        text = training_text()
        words = DomainVocabulary.of_text(text, 512)
        (DEMO / "rwkv7-domains.vocab.txt").write_text(words.file(), encoding="utf-8")
        data, size = torch.tensor(words.encode(text)), Size(3, 256, 512, 8, 256)
        name, steps = "rwkv7-domains.pth", args.steps or 1300
        print(f"{len(data)} tokens of {len(text.encode())} bytes", flush=True)
    else:
        data = torch.frombuffer(bytearray(corpus().encode("ascii")), dtype=torch.uint8).long()
        size, name, steps = Size(), f"rwkv{args.version}-demo.pth", args.steps or 900
    out = args.out or DEMO / name
    p, loss = train(args.version, size, data, steps, args.batch, args.length, args.rate, args.seed)
    packed = io.BytesIO()  # a path would put its own name into the archive
    torch.save({name: value.detach().bfloat16().contiguous() for name, value in p.items()}, packed)
    out.write_bytes(packed.getvalue())
    print(f"{out.name}: {out.stat().st_size} bytes, loss {loss:.3f} nats a token")


if __name__ == "__main__":
    main()
