"""nncf.compress_weights on the torch model. Run by `quantization.child`.

With group size 32 its torch backend makes int4 of linear layers and, where all_layers, of the embedding and the head;
convolutions get int8. `linears` hands it the tower's 1x1 convolutions as linear layers, so that it has int4 for them.
"""

from typing import Any

import numpy as np
import torch

from quantization.packed import Packed
from quantization.subject import Answering, calibration_batches, checkpoint, with_linears

PRE, POST = "__nncf_hooks.pre_hooks.", "__nncf_hooks.post_hooks."


def run(settings: dict[str, Any]) -> Packed:
    """settings: mode; and with 4 bits all_layers, awq, scale_estimation; linears."""
    import nncf

    model = checkpoint().model()
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    subject = Answering(with_linears(model) if settings["linears"] else model).eval()
    inputs = [(batch.pixels, batch.ids) for batch in calibration_batches()]
    options = {key: settings[key] for key in ("all_layers", "awq", "scale_estimation") if key in settings}
    if "INT4" in settings["mode"]:
        options |= {"group_size": 32, "ratio": 1.0, "subset_size": len(inputs)}
        fallback = nncf.AdvancedCompressionParameters(group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST)
        options["advanced_parameters"] = fallback  # one weight has 16 columns
    mode = nncf.CompressWeightsMode[settings["mode"]]
    compressed = nncf.compress_weights(subject, mode=mode, dataset=nncf.Dataset(inputs), **options)
    return _read(compressed, inputs[0], shapes)


@torch.no_grad()
def _read(compressed: torch.nn.Module, example: tuple[torch.Tensor, ...], shapes: dict[str, Any]) -> Packed:
    """The weights that its modules compute with, and its own state dict by weight."""
    state, modules = compressed.state_dict(), dict(compressed.named_modules())
    scaled = _scaled_inputs(compressed, example)
    result = Packed(note="also scales inputs of " + ", ".join(sorted(scaled)) if scaled else "")
    for key in state:
        name = key.removeprefix("model.")
        hook = POST + key.replace(".", ":") + "__0.0"
        if hook not in modules:
            continue
        dense = modules[hook](state[key]).float()
        parts = {"codes": state[key].numpy()}
        for part, array in state.items():
            if part.startswith(f"{hook}."):
                parts[part.removeprefix(f"{hook}._")] = array.numpy()
        if name in scaled:
            dense = dense * scaled[name].reshape(1, -1)
            parts["input_scale"] = scaled[name].numpy().astype(np.float16)
        result.add(name, dense.reshape(shapes[name]).numpy(), **parts)
        result.native.append(name)
    for key, array in state.items():  # AWQ moves scales between weights that stay float, too: none must be lost
        name = key.removeprefix("model.")
        if name in shapes and name not in result.dense and array.is_floating_point():
            result.add(name, array.reshape(shapes[name]).float().numpy(), float=array.numpy().astype(np.float16))
    return result


def _scaled_inputs(compressed: torch.nn.Module, example: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
    """{weight: (in,) what AWQ multiplies the layer's input by}, where it could not move that into the layer before."""
    found: dict[str, torch.Tensor] = {}
    current = [""]
    hooks = []
    for name, module in compressed.named_modules():
        if name.startswith(PRE) and hasattr(module, "_scale_value"):

            def seen(module: Any, inputs: Any, output: Any) -> None:
                found[f"{current[0]}.weight"] = module._scale_value.detach().flatten().float()

            hooks.append(module.register_forward_hook(seen))
        elif isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and not name.startswith("__nncf"):

            def enters(module: Any, inputs: Any, name: str = name) -> None:
                current[0] = name.removeprefix("model.")

            hooks.append(module.register_forward_pre_hook(enters))
    compressed(*example)
    for hook in hooks:
        hook.remove()
    return found
