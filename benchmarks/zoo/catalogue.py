"""The families: which models, how each is built, and on what inputs it runs. Random weights, small inputs, batch 1."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

TESTS = Path(__file__).parent.parent.parent / "tests"
Size = tuple[int, ...]
IMAGES: tuple[Size, ...] = ((96, 96), (128, 96), (97, 97), (75, 111), (90, 101))  # the first is the example
LARGE: tuple[Size, ...] = ((224, 224), (256, 224), (225, 225), (231, 247), (230, 241))
VOLUMES: tuple[Size, ...] = ((32, 32, 32), (64, 32, 32), (33, 33, 33), (37, 41, 35), (34, 45, 38))
DEEP: tuple[Size, ...] = ((64, 64, 64), (96, 64, 64), (65, 65, 65), (69, 73, 67), (66, 77, 70))  # halved five times
VIDEOS: tuple[Size, ...] = ((8, 64, 64), (16, 64, 96), (9, 65, 65), (8, 75, 67), (10, 70, 81))


def image(size: Size) -> tuple[Any, ...]:
    return (torch.randn(1, 3, *size),)


def volume(size: Size) -> tuple[Any, ...]:
    return (torch.randn(1, 1, *size),)


def detected(size: Size) -> tuple[Any, ...]:
    return ([torch.rand(3, *size)],)


def pair(size: Size) -> tuple[Any, ...]:
    return torch.randn(1, 3, *size), torch.randn(1, 3, *size)


@dataclass(frozen=True)
class Family:
    """One row of the table.

    Attributes:
        name: of the row.
        library: the module that must be importable.
        models: the options of each model, by its name.
        build: makes a model of its name and options.
        sizes: of the inputs; the first is the example that the model is repaired on.
        inputs: a size -> the model's arguments.
        seconds: of processor time that one model may take.
        watch: the module whose outputs stand for the model's at full strength, where the model's own (boxes) are as
            many as their values say.
    """

    name: str
    library: str
    models: Mapping[str, Mapping[str, Any]]
    build: Callable[..., nn.Module]
    sizes: tuple[Size, ...] = IMAGES
    inputs: Callable[[Size], tuple[Any, ...]] = image
    seconds: float = 150
    watch: str = ""


def _of(*names: str, **options: Any) -> dict[str, dict[str, Any]]:
    return dict.fromkeys(names, options)


def _timm(name: str, **options: Any) -> nn.Module:
    import timm

    return timm.create_model(name, **options)


def _torchvision(name: str, **options: Any) -> nn.Module:
    import torchvision

    return torchvision.models.get_model(name, weights=None, **options)


def _video(name: str, **sizes: Any) -> nn.Module:
    """torchvision's builders fix the sizes that an MViT is for; its class takes others."""
    from torchvision.models.video import mvit

    whole = mvit.MViT
    with mock.patch.object(mvit, "MViT", lambda **options: whole(**(options | sizes))):
        return _torchvision(name)


def _smp(name: str, **options: Any) -> nn.Module:
    import segmentation_models_pytorch as smp  # pyright: ignore[reportMissingImports]

    architecture, encoder = name.split(" ")
    return getattr(smp, architecture)(encoder, encoder_weights=None, **options)


def _monai(name: str, **options: Any) -> nn.Module:
    from monai.networks import nets  # pyright: ignore[reportMissingImports]

    return getattr(nets, name.split(" ")[0])(**options)


def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Non-maximum suppression in plain torch, for a torchvision without its own operators."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    left, kept = scores.argsort(descending=True), []
    while left.numel():
        best, left = left[0], left[1:]
        kept.append(best)
        low, high = boxes[best, :2].maximum(boxes[left, :2]), boxes[best, 2:].minimum(boxes[left, 2:])
        overlap = (high - low).clamp(min=0).prod(-1)
        left = left[overlap <= iou_threshold * (area[best] + area[left] - overlap)]
    return torch.stack(kept) if kept else scores.new_empty(0, dtype=torch.int64)


def prepare() -> None:
    """Imports torchvision as it can be imported beside a torch without CUDA, and lends it what it then lacks."""
    if str(TESTS) not in sys.path:
        sys.path.insert(0, str(TESTS))
    import peers  # noqa: F401 # pyright: ignore[reportMissingImports]
    import torchvision
    from torchvision.extension import _has_ops

    if not _has_ops():
        torchvision.ops.boxes._assert_has_ops = lambda: None
        _KEPT.append(torch.library.Library("torchvision", "IMPL", "CPU"))
        _KEPT[0].impl("nms", _nms)


_KEPT: list[Any] = []  # a library's kernels last as long as the object

PACKAGES = {  # the name in the index of each importable module
    "timm": "timm", "torchvision": "torchvision", "segmentation_models_pytorch": "segmentation-models-pytorch",
    "monai": "monai",
}  # fmt: skip


def missing() -> list[str]:
    """The packages, of those above, that are not installed."""
    return [package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None]


_DYNAMIC = {"img_size": 96, "dynamic_img_size": True, "dynamic_img_pad": True}
_VIDEO = {"temporal_size": 8, "spatial_size": (64, 64)}
_BOXES = {"min_size": 96, "max_size": 160, "weights_backbone": None}
_RCNN = _BOXES | {"rpn_pre_nms_top_n_test": 200, "rpn_post_nms_top_n_test": 20, "box_score_thresh": 0.0}
_FEW = {"score_thresh": 0.0, "topk_candidates": 20}  # random scores: all boxes would pass, or none
_UNET = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2}

FAMILIES = (
    Family("timm: ResNets", "timm", _of(
        "resnet18", "resnet26d", "resnet10t", "resnext26ts", "resnetblur18", "ecaresnet26t", "skresnet18", "resnest14d",
        "res2net50_14w_8s", "resnetv2_50"), _timm),
    Family("timm: CSP, VoVNet, SelecSLS", "timm", _of(
        "cspresnet50", "cspdarknet53", "ese_vovnet19b_slim", "selecsls42b"),
        _timm),
    Family("timm: RegNets", "timm", _of("regnetx_002", "regnety_002", "regnetz_005"), _timm),
    Family("timm: ConvNeXts", "timm", _of(
        "convnext_atto", "convnext_atto_ols", "convnextv2_atto", "inception_next_atto"), _timm),
    Family("timm: EfficientNets", "timm", _of(
        "efficientnet_b0", "tf_efficientnet_b0", "tf_efficientnetv2_b0", "efficientnet_lite0", "mixnet_s",
        "tf_efficientnet_cc_b0_4e", "rexnet_100"), _timm),
    Family("timm: MobileNets and relatives", "timm", _of(
        "mobilenetv2_050", "tf_mobilenetv3_small_minimal_100", "mobilenetv4_conv_small_035", "mnasnet_small",
        "ghostnet_050", "lcnet_035", "tinynet_e"), _timm),
    Family("timm: re-parametrised (RepVGG, MobileOne, FastViT, RepViT)", "timm", _of(
        "repvgg_a0", "mobileone_s0", "fastvit_t8", "repvit_m0_9"), _timm),
    Family("timm: DenseNets, DLA, HRNet", "timm", _of("densenet121", "dla34", "dla46_c", "hrnet_w18_small"), _timm),
    Family("timm: NFNets", "timm", _of("eca_nfnet_l0", "nf_regnet_b0", "nf_resnet50"), _timm),
    Family("timm: VGG, Inception, Xception", "timm", _of(
        "vgg11", "vgg11_bn", "inception_v3", "inception_v4", "xception41"), _timm),
    Family("timm: hierarchical transformers", "timm",
        _of("swin_tiny_patch4_window7_224", img_size=96, window_size=3, strict_img_size=False)
        | _of("swinv2_cr_tiny_224", img_size=96, window_size=3, strict_img_size=False)
        | _of("pvt_v2_b0", "poolformer_s12", "caformer_s18", "edgenext_xx_small", "davit_tiny", "focalnet_tiny_srf")
        | _of("twins_svt_small", "nest_tiny", "mvitv2_tiny", img_size=96), _timm),
    Family("timm: convolution and attention mixed", "timm",
        _of("mobilevit_xxs", "mobilevitv2_050", "efficientvit_b0")
        | _of("coatnet_pico_rw_224", "maxvit_rmlp_pico_rw_256", img_size=224)
        | _of("efficientvit_m0", "efficientformerv2_s0", "levit_128s", "hiera_tiny_224"), _timm, LARGE),
    Family("timm: plain transformers and mixers", "timm",
        _of("vit_tiny_patch16_224", "deit_tiny_patch16_224", "eva02_tiny_patch14_224", **_DYNAMIC)
        | _of("xcit_nano_12_p16_224") | _of("pit_ti_224", "mixer_s32_224", "resmlp_12_224", img_size=96)
        | _of("convmixer_768_32"), _timm),
    Family("torchvision: classification", "torchvision",
        _of("alexnet", "vgg11", "squeezenet1_0", "resnet18", "densenet121", "mnasnet0_5", "mobilenet_v3_small",
            "shufflenet_v2_x0_5", "efficientnet_v2_s", "regnet_y_400mf", "convnext_tiny", "swin_v2_t")
        | _of("googlenet", "inception_v3", init_weights=False)
        | _of("vit_b_32", image_size=96), _torchvision),
    Family("torchvision: detection", "torchvision",
        _of("fasterrcnn_mobilenet_v3_large_320_fpn", "fasterrcnn_resnet50_fpn_v2", "maskrcnn_resnet50_fpn",
            "keypointrcnn_resnet50_fpn", **_RCNN)
        | _of("retinanet_resnet50_fpn", "fcos_resnet50_fpn", **_BOXES, **_FEW)
        | _of("ssd300_vgg16", "ssdlite320_mobilenet_v3_large", weights_backbone=None, **_FEW), _torchvision,
        inputs=detected, seconds=600, watch="backbone"),
    Family("torchvision: segmentation", "torchvision", _of(
        "fcn_resnet50", "deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large",
        weights_backbone=None), _torchvision),
    Family("torchvision: video", "torchvision",
        _of("r3d_18", "mc3_18", "r2plus1d_18", "swin3d_t") | _of("mvit_v1_b", "mvit_v2_s", **_VIDEO), _video, VIDEOS),
    Family("torchvision: video, S3D", "torchvision", _of("s3d"), _torchvision, tuple((16, *s) for s in LARGE[:5])),
    Family("torchvision: optical flow", "torchvision", _of("raft_small"), _torchvision,
        ((128, 128), (136, 160), (129, 129), (128, 135), (131, 150)), pair),
    Family("smp: Unet, Unet++, MAnet, Linknet", "segmentation_models_pytorch", _of(
        "Unet resnet18", "Unet mobilenet_v2", "Unet efficientnet-b0", "Unet tu-convnext_atto", "UnetPlusPlus resnet18",
        "MAnet resnet18", "Linknet resnet18"), _smp),
    Family("smp: FPN, PSPNet, PAN, UPerNet", "segmentation_models_pytorch", _of(
        "FPN resnet18", "FPN timm-regnetx_002", "PSPNet resnet18", "PAN resnet18", "UPerNet resnet18"), _smp),
    Family("smp: DeepLabV3, DeepLabV3+, Segformer", "segmentation_models_pytorch", _of(
        "DeepLabV3 resnet18", "DeepLabV3Plus resnet18", "Segformer mit_b0"), _smp),
    Family("MONAI: U-Nets, 3-D", "monai",
        _of("UNet", channels=(8, 16, 32), strides=(2, 2), num_res_units=2, **_UNET)
        | _of("UNet batch", channels=(8, 16, 32), strides=(2, 2), norm="batch", **_UNET)
        | _of("BasicUNet", features=(8, 8, 16, 32, 64, 8), **_UNET)
        | _of("AttentionUnet", channels=(8, 16, 32), strides=(2, 2), **_UNET)
        | _of("DynUNet", kernel_size=(3, 3, 3), strides=(1, 2, 2), upsample_kernel_size=(2, 2), filters=(8, 16, 32),
            **_UNET)
        | _of("VNet", spatial_dims=3, in_channels=1, out_channels=2), _monai, VOLUMES, volume),
    Family("MONAI: SegResNets, 3-D", "monai",
        _of("SegResNet", init_filters=8, in_channels=1, out_channels=2)
        | _of("SegResNet batch", init_filters=8, in_channels=1, out_channels=2, norm="batch")
        | _of("SegResNetDS", init_filters=8, in_channels=1, out_channels=2), _monai, VOLUMES, volume),
    Family("MONAI: classifiers, 3-D", "monai",
        _of("DenseNet121", spatial_dims=3, in_channels=1, out_channels=2)
        | _of("resnet10", spatial_dims=3, n_input_channels=1, num_classes=2)
        | _of("SEResNet50", spatial_dims=3, in_channels=1, num_classes=2)
        | _of("EfficientNetBN", model_name="efficientnet-b0", pretrained=False, spatial_dims=3, in_channels=1),
        _monai, VOLUMES, volume),
    Family("MONAI: transformers and auto-encoders, 3-D", "monai",
        _of("UNETR", img_size=(32, 32, 32), feature_size=4, hidden_size=48, mlp_dim=96, num_heads=4, in_channels=1,
            out_channels=2)
        | _of("AutoEncoder", channels=(8, 16, 32), strides=(2, 2, 2), **_UNET), _monai, VOLUMES, volume),
    Family("MONAI: SwinUNETR, 3-D", "monai", _of("SwinUNETR", feature_size=12, in_channels=1, out_channels=2), _monai,
        DEEP, volume),
)  # fmt: skip


def family(name: str) -> Family:
    return next(f for f in FAMILIES if f.name == name)
