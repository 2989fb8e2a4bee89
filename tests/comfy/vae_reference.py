"""Decode with ComfyUI's own classes: ``python vae_reference.py COMFYUI_FOLDER JOB.safetensors OUT.safetensors``.

The job holds a latent ``z``, the weights under ``weights.``, and in its metadata the class and its arguments as JSON.
"""

import json
import sys

sys.path.insert(0, sys.argv[1])
sys.argv, (folder, job, out) = sys.argv[:1], sys.argv[1:]

import comfy.cli_args  # noqa: E402 - ComfyUI is found only now

comfy.cli_args.args.cpu = True

import torch  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402


def build(kind: str, arguments: dict[str, object]) -> torch.nn.Module:
    if kind == "WanVAE":
        from comfy.ldm.wan.vae import WanVAE

        return WanVAE(**arguments)
    if kind == "WanModel":
        import comfy.ops
        from comfy.ldm.wan.model import WanModel

        return WanModel(**arguments, operations=comfy.ops.disable_weight_init, device="cpu", dtype=torch.float32)
    from comfy import latent_formats
    from comfy.taesd.taehv import TAEHV

    normalised = arguments.pop("normalised")
    return TAEHV(**arguments, latent_format=latent_formats.Wan21 if normalised else None)


with safe_open(job, framework="pt") as file:
    said = file.metadata()
tensors = load_file(job)
model = build(said["class"], json.loads(said["arguments"])).eval()
weights = {n.removeprefix("weights."): t for n, t in tensors.items() if n.startswith("weights.")}
missing, unexpected = model.load_state_dict(weights, strict=False)
assert not unexpected, unexpected
assert all(n.startswith(tuple(json.loads(said["may_miss"]))) for n in missing), missing
with torch.inference_mode():
    if said["class"] == "WanModel":
        result = model(tensors["z"], tensors["timestep"], tensors["context"])
    else:
        result = model.decode(tensors["z"])
save_file({"out": result.float().contiguous()}, out)
