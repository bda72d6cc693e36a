"""Networks of the coverage page: all classifiers and segmenters of torchvision, and families of transformers.

Weights are random. Of torchvision the widths and depths are the published ones and only the image is small; of
transformers the configurations are small (two blocks of width 64), because a block that can be followed once can be
followed again.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["NETWORKS", "Network", "load_libraries"]

_OPERATORS = (
    "nms", "qnms", "roi_align", "_roi_align_backward", "ps_roi_align", "_ps_roi_align_backward", "roi_pool",
    "_roi_pool_backward", "ps_roi_pool", "_ps_roi_pool_backward", "deform_conv2d", "_deform_conv2d_backward",
)  # fmt: skip
_LIBRARIES: list[torch.library.Library] = []  # a library that is let go takes its operators along
VOCABULARY = 96
TOKENS = 16


@dataclass(frozen=True)
class Network:
    """``build`` makes the module; ``inputs`` are its keyword arguments for one sample, or one tensor under ``""``."""

    family: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Mapping[str, Tensor]]


def load_libraries() -> None:
    """Import what the networks come from, torchvision also beside a torch that its operators were not built for."""
    if not _LIBRARIES and not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "DEF")
        for name in _OPERATORS:
            library.define(f"{name}(Tensor x) -> Tensor")
        _LIBRARIES.append(library)
    import torchvision
    import transformers

    transformers.logging.set_verbosity_error()
    assert torchvision.__version__


def _vision(builder: str, module: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        load_libraries()
        import torchvision

        extra = {"weights_backbone": None} if module == "segmentation" else {}
        if builder in ("googlenet", "inception_v3"):
            extra = {"init_weights": False}
        return torchvision.models.get_model(builder, weights=None, **extra)

    return build


def _image(size: int) -> Callable[[], Mapping[str, Tensor]]:
    return lambda: {"": torch.randn(1, 3, size, size)}


_CLASSIFIERS = {
    "alexnet": 64,
    **dict.fromkeys((f"convnext_{size}" for size in ("tiny", "small", "base", "large")), 64),
    **dict.fromkeys((f"densenet{depth}" for depth in (121, 161, 169, 201)), 64),
    **dict.fromkeys((f"efficientnet_b{i}" for i in range(8)), 64),
    **dict.fromkeys((f"efficientnet_v2_{size}" for size in "sml"), 64),
    "googlenet": 64,
    "inception_v3": 96,
    "maxvit_t": 224,
    **dict.fromkeys((f"mnasnet{width}" for width in ("0_5", "0_75", "1_0", "1_3")), 64),
    **dict.fromkeys(("mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small"), 64),
    **dict.fromkeys(
        (
            f"regnet_{kind}_{size}"
            for kind in "xy"
            for size in ("400mf", "800mf", "1_6gf", "3_2gf", "8gf", "16gf", "32gf", "128gf")
            if (kind, size) != ("x", "128gf")
        ),
        64,
    ),
    **dict.fromkeys((f"resnet{depth}" for depth in (18, 34, 50, 101, 152)), 64),
    **dict.fromkeys(("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"), 64),
    **dict.fromkeys((f"shufflenet_v2_x{width}" for width in ("0_5", "1_0", "1_5", "2_0")), 64),
    **dict.fromkeys(("squeezenet1_0", "squeezenet1_1"), 64),
    **dict.fromkeys((f"swin_{version}{size}" for version in ("", "v2_") for size in "tsb"), 64),
    **dict.fromkeys((f"vgg{depth}{norm}" for depth in (11, 13, 16, 19) for norm in ("", "_bn")), 64),
    **dict.fromkeys(("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14"), 224),
    **dict.fromkeys(("wide_resnet50_2", "wide_resnet101_2"), 64),
}
_SEGMENTERS = {
    "deeplabv3_mobilenet_v3_large": 64,
    "deeplabv3_resnet50": 64,
    "deeplabv3_resnet101": 64,
    "fcn_resnet50": 64,
    "fcn_resnet101": 64,
    "lraspp_mobilenet_v3_large": 64,
}


@dataclass(frozen=True)
class _Family:
    """A family of transformers: its model class, the sizes of a small one, and what it reads."""

    model: str
    sizes: Mapping[str, Any] = field(default_factory=dict)
    reads: tuple[str, ...] = ("input_ids",)
    config: str = ""

    def build(self) -> nn.Module:
        load_libraries()
        import transformers

        model = getattr(transformers, self.model)
        config = getattr(transformers, self.config) if self.config else model.config_class
        return model(config(**self.sizes))

    def inputs(self) -> Mapping[str, Tensor]:
        return {name: _READS[name](self.sizes) for name in self.reads}


def _tokens(_: Mapping[str, Any]) -> Tensor:
    return torch.randint(5, VOCABULARY, (1, TOKENS))


_READS: Mapping[str, Callable[[Mapping[str, Any]], Tensor]] = {
    "input_ids": _tokens,
    "decoder_input_ids": lambda _: torch.randint(5, VOCABULARY, (1, TOKENS // 2)),
    "pixel_values": lambda sizes: torch.randn(1, 3, sizes.get("image_size", 64), sizes.get("image_size", 64)),
    "input_features": lambda sizes: torch.randn(1, sizes.get("num_mel_bins", 16), 64),
    "input_values": lambda _: torch.randn(1, 1600),
    "frames": lambda sizes: torch.randn(1, 64, sizes["input_feat_per_channel"]),
    "audio": lambda sizes: torch.randn(1, sizes["max_length"], sizes["num_mel_bins"]),
}

_BERT = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 128, "max_position_embeddings": 32,
}  # fmt: skip
_ROBERTA = {**_BERT, "pad_token_id": 1, "max_position_embeddings": 40}
_LLAMA = {**_BERT, "num_key_value_heads": 2}
_MOE = {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}
_VIT = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
_BART = {
    "vocab_size": VOCABULARY, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "max_position_embeddings": 32,
}  # fmt: skip
_T5 = {"vocab_size": VOCABULARY, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
_AUDIO = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
    "conv_dim": (32, 32, 32), "conv_stride": (5, 2, 2), "conv_kernel": (10, 3, 2), "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
_SEQ = ("input_ids", "decoder_input_ids")
_PIXELS = ("pixel_values",)

_FAMILIES: Mapping[str, _Family] = {
    # encoders of text
    "bert": _Family("BertForSequenceClassification", _BERT),
    "bert_mlm": _Family("BertForMaskedLM", _BERT),
    "distilbert": _Family(
        "DistilBertForSequenceClassification",
        {"vocab_size": VOCABULARY, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128},
    ),
    "roberta": _Family("RobertaForSequenceClassification", _ROBERTA),
    "xlm_roberta": _Family("XLMRobertaForTokenClassification", _ROBERTA),
    "camembert": _Family("CamembertForSequenceClassification", _ROBERTA),
    "albert": _Family("AlbertForSequenceClassification", {**_BERT, "embedding_size": 32}),
    "electra": _Family("ElectraForSequenceClassification", {**_BERT, "embedding_size": 32}),
    "deberta": _Family(
        "DebertaForSequenceClassification",
        {**_BERT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": -1},
    ),
    "deberta_v2": _Family(
        "DebertaV2ForSequenceClassification",
        {
            **_BERT,
            "relative_attention": True,
            "pos_att_type": ["c2p", "p2c"],
            "position_buckets": 8,
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
        },
    ),
    "mpnet": _Family("MPNetForSequenceClassification", _ROBERTA),
    "mobilebert": _Family(
        "MobileBertForSequenceClassification",
        {**_BERT, "embedding_size": 32, "intra_bottleneck_size": 32, "num_feedforward_networks": 2},
    ),
    "squeezebert": _Family("SqueezeBertForSequenceClassification", {**_BERT, "embedding_size": 64}),
    "modernbert": _Family("ModernBertForSequenceClassification", {**_BERT, "pad_token_id": 0}),
    "xlnet": _Family(
        "XLNetForSequenceClassification",
        {"vocab_size": VOCABULARY, "d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 128},
    ),
    "fnet": _Family("FNetForSequenceClassification", _BERT),
    "funnel": _Family(
        "FunnelForSequenceClassification",
        {"vocab_size": VOCABULARY, "d_model": 64, "n_head": 4, "d_head": 16, "d_inner": 128, "block_sizes": [1, 1]},
    ),
    "longformer": _Family("LongformerForSequenceClassification", {**_ROBERTA, "attention_window": 8}),
    "convbert": _Family("ConvBertForSequenceClassification", {**_BERT, "embedding_size": 64}),
    "esm": _Family("EsmForSequenceClassification", {**_BERT, "pad_token_id": 1, "position_embedding_type": "rotary"}),
    "data2vec_text": _Family("Data2VecTextForSequenceClassification", _ROBERTA),
    "ernie": _Family("ErnieForSequenceClassification", _BERT),
    "roformer": _Family("RoFormerForSequenceClassification", {**_BERT, "embedding_size": 64}),
    "nystromformer": _Family(
        "NystromformerForSequenceClassification", {**_BERT, "num_landmarks": 4, "segment_means_seq_len": TOKENS}
    ),
    "xlm": _Family(
        "XLMForSequenceClassification", {"vocab_size": VOCABULARY, "emb_dim": 64, "n_layers": 2, "n_heads": 4}
    ),
    "layoutlm": _Family("LayoutLMForSequenceClassification", _BERT),
    # decoders of text
    "gpt2": _Family("GPT2LMHeadModel", {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4}),
    "gpt_neo": _Family(
        "GPTNeoForCausalLM",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 8,
            "max_position_embeddings": 32,
        },
    ),
    "gpt_neox": _Family("GPTNeoXForCausalLM", _BERT),
    "gptj": _Family(
        "GPTJForCausalLM", {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8}
    ),
    "opt": _Family("OPTForCausalLM", {**_BERT, "ffn_dim": 128, "word_embed_proj_dim": 64}),
    "bloom": _Family("BloomForCausalLM", {"vocab_size": VOCABULARY, "hidden_size": 64, "n_layer": 2, "n_head": 4}),
    "falcon": _Family("FalconForCausalLM", {**_BERT, "multi_query": True, "new_decoder_architecture": False}),
    "falcon_grouped": _Family("FalconForCausalLM", {**_BERT, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "llama": _Family("LlamaForCausalLM", _LLAMA),
    "llama_classifier": _Family("LlamaForSequenceClassification", {**_LLAMA, "pad_token_id": 0}),
    "mistral": _Family("MistralForCausalLM", {**_LLAMA, "sliding_window": 8}),
    "qwen2": _Family("Qwen2ForCausalLM", _LLAMA),
    "qwen3": _Family("Qwen3ForCausalLM", {**_LLAMA, "head_dim": 16}),
    "gemma": _Family("GemmaForCausalLM", {**_LLAMA, "num_key_value_heads": 1, "head_dim": 16}),
    "gemma2": _Family("Gemma2ForCausalLM", {**_LLAMA, "head_dim": 16}),
    "gemma3": _Family("Gemma3ForCausalLM", {**_LLAMA, "head_dim": 16}, config="Gemma3TextConfig"),
    "phi": _Family("PhiForCausalLM", _BERT),
    "phi3": _Family("Phi3ForCausalLM", {**_LLAMA, "pad_token_id": 0}),
    "stablelm": _Family("StableLmForCausalLM", _LLAMA),
    "olmo2": _Family("Olmo2ForCausalLM", _LLAMA),
    "granite": _Family("GraniteForCausalLM", _LLAMA),
    "smollm3": _Family("SmolLM3ForCausalLM", {**_LLAMA, "pad_token_id": 0}),
    "mixtral": _Family("MixtralForCausalLM", _MOE),
    "qwen2_moe": _Family(
        "Qwen2MoeForCausalLM",
        {
            **_LLAMA,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "shared_expert_intermediate_size": 64,
        },
    ),
    "qwen3_moe": _Family(
        "Qwen3MoeForCausalLM",
        {**_LLAMA, "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48},
    ),
    "gpt_bigcode": _Family(
        "GPTBigCodeForCausalLM", {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4}
    ),
    "codegen": _Family(
        "CodeGenForCausalLM", {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 8, "rotary_dim": 8}
    ),
    "mpt": _Family("MptForCausalLM", {"vocab_size": VOCABULARY, "d_model": 64, "n_layers": 2, "n_heads": 4}),
    "biogpt": _Family("BioGptForCausalLM", _BERT),
    "xglm": _Family(
        "XGLMForCausalLM",
        {"vocab_size": VOCABULARY, "d_model": 64, "num_layers": 2, "attention_heads": 4, "ffn_dim": 128},
    ),
    "starcoder2": _Family("Starcoder2ForCausalLM", _LLAMA),
    "persimmon": _Family("PersimmonForCausalLM", _BERT),
    "nemotron": _Family("NemotronForCausalLM", {**_LLAMA, "head_dim": 16}),
    "olmo": _Family("OlmoForCausalLM", _LLAMA),
    "cohere": _Family("CohereForCausalLM", {**_LLAMA, "pad_token_id": 0}),
    "cohere2": _Family("Cohere2ForCausalLM", {**_LLAMA, "pad_token_id": 0}),
    "glm": _Family("GlmForCausalLM", {**_LLAMA, "head_dim": 16, "pad_token_id": 0}),
    "helium": _Family("HeliumForCausalLM", {**_LLAMA, "head_dim": 16, "pad_token_id": 0}),
    "olmoe": _Family("OlmoeForCausalLM", {**_LLAMA, "num_experts": 4, "num_experts_per_tok": 2}),
    "granite_moe": _Family("GraniteMoeForCausalLM", _MOE),
    "gpt_oss": _Family("GptOssForCausalLM", {**_MOE, "head_dim": 16}),
    "deepseek_v3": _Family(
        "DeepseekV3ForCausalLM",
        {
            **_BERT,
            "num_key_value_heads": 4,
            "q_lora_rank": 32,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 16,
            "v_head_dim": 16,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "moe_intermediate_size": 48,
            "first_k_dense_replace": 1,
        },
    ),
    "falcon_mamba": _Family(
        "FalconMambaForCausalLM", {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2}
    ),
    "rwkv": _Family("RwkvForCausalLM", {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2}),
    "mamba": _Family("MambaForCausalLM", {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2}),
    "mamba2": _Family(
        "Mamba2ForCausalLM",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_heads": 8,
            "head_dim": 16,
            "state_size": 16,
            "n_groups": 2,
            "chunk_size": 8,
        },
    ),
    # encoders and decoders
    "t5": _Family("T5ForConditionalGeneration", _T5, _SEQ),
    "t5_gated": _Family("T5ForConditionalGeneration", {**_T5, "feed_forward_proj": "gated-gelu"}, _SEQ),
    "t5_encoder": _Family("T5EncoderModel", _T5),
    "mt5": _Family("MT5ForConditionalGeneration", _T5, _SEQ),
    "bart": _Family("BartForConditionalGeneration", _BART, _SEQ),
    "mbart": _Family("MBartForConditionalGeneration", _BART, _SEQ),
    "pegasus": _Family("PegasusForConditionalGeneration", _BART, _SEQ),
    "marian": _Family("MarianMTModel", {**_BART, "pad_token_id": 0}, _SEQ),
    "m2m_100": _Family("M2M100ForConditionalGeneration", _BART, _SEQ),
    "blenderbot": _Family("BlenderbotForConditionalGeneration", _BART, _SEQ),
    "prophetnet": _Family(
        "ProphetNetForConditionalGeneration",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "num_encoder_layers": 2,
            "num_decoder_layers": 2,
            "num_encoder_attention_heads": 4,
            "num_decoder_attention_heads": 4,
            "encoder_ffn_dim": 128,
            "decoder_ffn_dim": 128,
        },
        _SEQ,
    ),
    "longt5": _Family("LongT5ForConditionalGeneration", {**_T5, "local_radius": 4}, _SEQ),
    "umt5": _Family("UMT5ForConditionalGeneration", _T5, _SEQ),
    "switch_transformers": _Family(
        "SwitchTransformersForConditionalGeneration",
        {**_T5, "num_experts": 4, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
        _SEQ,
    ),
    # pictures
    "vit": _Family("ViTForImageClassification", _VIT, _PIXELS),
    "deit": _Family("DeiTForImageClassification", _VIT, _PIXELS),
    "beit": _Family("BeitForImageClassification", {**_VIT, "use_relative_position_bias": True}, _PIXELS),
    "dinov2": _Family("Dinov2ForImageClassification", {**_VIT, "mlp_ratio": 2}, _PIXELS),
    "dinov2_registers": _Family("Dinov2WithRegistersForImageClassification", {**_VIT, "mlp_ratio": 2}, _PIXELS),
    "swin": _Family(
        "SwinForImageClassification",
        {"image_size": 64, "patch_size": 4, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
        _PIXELS,
    ),
    "swinv2": _Family(
        "Swinv2ForImageClassification",
        {"image_size": 64, "patch_size": 4, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
        _PIXELS,
    ),
    "convnext": _Family(
        "ConvNextForImageClassification", {"hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 2, 1]}, _PIXELS
    ),
    "convnextv2": _Family(
        "ConvNextV2ForImageClassification", {"hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 2, 1]}, _PIXELS
    ),
    "resnet": _Family(
        "ResNetForImageClassification",
        {"embedding_size": 16, "hidden_sizes": [32, 64, 96, 128], "depths": [1, 1, 2, 1]},
        _PIXELS,
    ),
    "regnet": _Family(
        "RegNetForImageClassification",
        {"embedding_size": 16, "hidden_sizes": [32, 64, 96, 128], "depths": [1, 1, 2, 1], "groups_width": 16},
        _PIXELS,
    ),
    "mobilenet_v1": _Family("MobileNetV1ForImageClassification", {"depth_multiplier": 0.5}, _PIXELS),
    "mobilenet_v2": _Family("MobileNetV2ForImageClassification", {"depth_multiplier": 0.5}, _PIXELS),
    "efficientnet": _Family(
        "EfficientNetForImageClassification",
        {"width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640},
        _PIXELS,
    ),
    "bit": _Family(
        "BitForImageClassification",
        {"embedding_size": 32, "hidden_sizes": [32, 64, 96, 128], "depths": [1, 1, 1, 1], "num_groups": 8},
        _PIXELS,
    ),
    "mobilevit": _Family(
        "MobileViTForImageClassification",
        {
            "image_size": 64,
            "hidden_sizes": [32, 40, 48],
            "neck_hidden_sizes": [8, 16, 24, 32, 40, 48, 96],
            "num_attention_heads": 4,
        },
        _PIXELS,
    ),
    "mobilevitv2": _Family("MobileViTV2ForImageClassification", {"image_size": 64, "width_multiplier": 0.5}, _PIXELS),
    "segformer": _Family(
        "SegformerForSemanticSegmentation",
        {
            "hidden_sizes": [16, 32, 48, 64],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 3, 4],
            "decoder_hidden_size": 64,
        },
        _PIXELS,
    ),
    "pvt": _Family(
        "PvtForImageClassification",
        {"image_size": 64, "hidden_sizes": [16, 32, 48, 64], "depths": [1] * 4, "num_attention_heads": [1, 2, 3, 4]},
        _PIXELS,
    ),
    "poolformer": _Family(
        "PoolFormerForImageClassification", {"hidden_sizes": [16, 24, 32, 40], "depths": [1] * 4}, _PIXELS
    ),
    "levit": _Family(
        "LevitForImageClassification",
        {
            "image_size": 64,
            "hidden_sizes": [32, 48, 64],
            "num_attention_heads": [2, 3, 4],
            "depths": [1, 1, 1],
            "key_dim": [8] * 3,
        },
        _PIXELS,
    ),
    "cvt": _Family(
        "CvtForImageClassification", {"embed_dim": [16, 32, 48], "num_heads": [1, 2, 3], "depth": [1, 2, 3]}, _PIXELS
    ),
    "focalnet": _Family(
        "FocalNetForImageClassification", {"image_size": 64, "embed_dim": 24, "depths": [1, 1, 2, 1]}, _PIXELS
    ),
    "dpt": _Family(
        "DPTForSemanticSegmentation",
        {
            **_VIT,
            "num_hidden_layers": 4,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [16, 24, 32, 40],
            "fusion_hidden_size": 32,
            "is_hybrid": False,
        },
        _PIXELS,
    ),
    "clip_vision": _Family(
        "CLIPVisionModelWithProjection", {**_VIT, "projection_dim": 32}, _PIXELS, config="CLIPVisionConfig"
    ),
    "clip_text": _Family(
        "CLIPTextModelWithProjection", {**_BERT, "projection_dim": 32, "eos_token_id": 2}, config="CLIPTextConfig"
    ),
    "clip": _Family(
        "CLIPModel",
        {"text_config": {**_BERT, "eos_token_id": 2}, "vision_config": _VIT, "projection_dim": 32, "image_size": 32},
        ("input_ids", "pixel_values"),
    ),
    "siglip_vision": _Family("SiglipVisionModel", _VIT, _PIXELS, config="SiglipVisionConfig"),
    "siglip_text": _Family("SiglipTextModel", {**_BERT, "max_position_embeddings": TOKENS}, config="SiglipTextConfig"),
    "wav2vec2": _Family("Wav2Vec2ForSequenceClassification", _AUDIO, ("input_values",)),
    "wav2vec2_ctc": _Family("Wav2Vec2ForCTC", {**_AUDIO, "vocab_size": VOCABULARY}, ("input_values",)),
    "hubert": _Family("HubertForSequenceClassification", _AUDIO, ("input_values",)),
    "wavlm": _Family("WavLMForSequenceClassification", _AUDIO, ("input_values",)),
    "data2vec_audio": _Family("Data2VecAudioForSequenceClassification", _AUDIO, ("input_values",)),
    "unispeech": _Family("UniSpeechForSequenceClassification", _AUDIO, ("input_values",)),
    "sew": _Family("SEWForSequenceClassification", {**_AUDIO, "squeeze_factor": 2}, ("input_values",)),
    "wav2vec2_conformer": _Family(
        "Wav2Vec2ConformerForSequenceClassification", {**_AUDIO, "conv_depthwise_kernel_size": 7}, ("input_values",)
    ),
    "whisper": _Family(
        "WhisperForConditionalGeneration",
        {**_BART, "num_mel_bins": 16, "max_source_positions": 32, "max_target_positions": 32, "pad_token_id": 0},
        ("input_features", "decoder_input_ids"),
    ),
    "whisper_classifier": _Family(
        "WhisperForAudioClassification",
        {**_BART, "num_mel_bins": 16, "max_source_positions": 32, "pad_token_id": 0},
        ("input_features",),
    ),
    "speech_to_text": _Family(
        "Speech2TextForConditionalGeneration",
        {**_BART, "input_feat_per_channel": 16, "conv_channels": 32, "max_source_positions": 64},
        ("frames", "decoder_input_ids"),
    ),
    "moonshine": _Family(
        "MoonshineForConditionalGeneration",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "intermediate_size": 128,
            "encoder_num_hidden_layers": 2,
            "decoder_num_hidden_layers": 2,
            "encoder_num_attention_heads": 4,
            "decoder_num_attention_heads": 4,
        },
        ("input_values", "decoder_input_ids"),
    ),
    "clap_text": _Family("ClapTextModelWithProjection", {**_ROBERTA, "projection_dim": 32}, config="ClapTextConfig"),
    "ast": _Family(
        "ASTForAudioClassification",
        {**_VIT, "max_length": 64, "num_mel_bins": 16, "frequency_stride": 8, "time_stride": 8},
        ("audio",),
    ),
}


def _family_inputs(family: _Family) -> Callable[[], Mapping[str, Tensor]]:
    def inputs() -> Mapping[str, Tensor]:
        made = dict(family.inputs())
        if "audio" in made:
            made["input_values"] = made.pop("audio")
        if "frames" in made:
            made = {"input_features": made.pop("frames"), **made}
        return made

    return inputs


NETWORKS: Mapping[str, Network] = {
    **{
        f"torchvision/{name}": Network("classification", _vision(name, "models"), _image(size))
        for name, size in _CLASSIFIERS.items()
    },
    **{
        f"torchvision/{name}": Network("segmentation", _vision(name, "segmentation"), _image(size))
        for name, size in _SEGMENTERS.items()
    },
    **{
        f"transformers/{name}": Network("transformers", family.build, _family_inputs(family))
        for name, family in _FAMILIES.items()
    },
}
