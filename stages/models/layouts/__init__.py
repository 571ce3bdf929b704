"""The layouts in which checkpoints come, one file each: their names of tensors, their config.json, what lies beside it.

    apple         Apple's releases of FastVLM: model_type llava_qwen2, tower under model.vision_tower.vision_tower.model
    transformers  transformers' fast_vlm: tower in timm's names, decoder under model.language_model
    qwen2         plain Qwen2ForCausalLM
    native        Tapeout's own, which `load` writes

Each has `read(path, values)`, which checks all that can be checked without reading a weight's values, and says where
each tensor of the model comes from (`tensors.Tensors`). Nothing in a checkpoint is ever executed, but for its chat
template, in a sandbox.
"""
