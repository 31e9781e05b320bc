"""EfficientNet-Lite0 cut after stride 16, the embedded backbone.

Source: Tan & Le, "EfficientNet" (ICML 2019), in the Lite variant of the TensorFlow TPU repository: no
squeeze-and-excitation, ReLU6 everywhere, fixed stem. Parameter names are those of timm's
``tf_efficientnet_lite0``, so that its state dict is the reference; ``tests/test_backbone.py`` compares the two.
"""

import torch.nn.functional as F
from torch import Tensor, nn

_BN_EPS = 1e-3  # TensorFlow's default; PyTorch's 1e-5 gives other features

# (kernel, stride, expansion, channels out, repeats) of the blocks up to stride 16.
_STAGES = ((3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3), (5, 1, 6, 112, 3))


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding: the odd pixel goes to the right and the bottom."""

    def forward(self, x: Tensor) -> Tensor:
        h, w = (_same_padding(int(n), self.kernel_size[0], self.stride[0]) for n in x.shape[-2:])
        if h[0] == h[1] and w[0] == w[1]:  # symmetric: let the convolution pad, which runtimes fuse
            return F.conv2d(x, self.weight, self.bias, self.stride, (h[0], w[0]), 1, self.groups)
        return F.conv2d(F.pad(x, (*w, *h)), self.weight, self.bias, self.stride, 0, 1, self.groups)


def _same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class SeparableBlock(nn.Module):
    """Depthwise convolution and projection; the first stage's block, without expansion."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv_dw = SameConv2d(channels, channels, kernel, stride, groups=channels, bias=False)
        self.bn1 = nn.BatchNorm2d(channels, _BN_EPS)
        self.conv_pw = SameConv2d(channels, out, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out, _BN_EPS)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn2(self.conv_pw(F.relu6(self.bn1(self.conv_dw(x)))))
        return y


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, linear projection (MobileNetV2), with a skip where shapes allow."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        mid = channels * expansion
        self.conv_pw = SameConv2d(channels, mid, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(mid, _BN_EPS)
        self.conv_dw = SameConv2d(mid, mid, kernel, stride, groups=mid, bias=False)
        self.bn2 = nn.BatchNorm2d(mid, _BN_EPS)
        self.conv_pwl = SameConv2d(mid, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out, _BN_EPS)
        self.skip = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(x, self.activations(x))

    def activations(self, x: Tensor) -> Tensor:
        """The block's first half: expanded channels, after the depthwise convolution."""
        y: Tensor = F.relu6(self.bn1(self.conv_pw(x)))
        return F.relu6(self.bn2(self.conv_dw(y)))

    def finish(self, x: Tensor, activations: Tensor) -> Tensor:
        """The block's second half. Args: x, what the block was given; activations of it."""
        y: Tensor = self.bn3(self.conv_pwl(activations))
        return x + y if self.skip else y


class EfficientNetLite0(nn.Module):
    """Features at strides 8 and 16 of a batch of RGB images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = SameConv2d(3, 32, 3, 2, bias=False)
        self.bn1 = nn.BatchNorm2d(32, _BN_EPS)
        stages: list[nn.Module] = []
        channels = 32
        for kernel, stride, expansion, out, repeats in _STAGES:
            stage: list[nn.Module] = []
            for i in range(repeats):
                step = stride if i == 0 else 1
                stage.append(
                    SeparableBlock(channels, out, kernel, step)
                    if expansion == 1
                    else InvertedResidual(channels, out, kernel, step, expansion)
                )
                channels = out
            stages.append(nn.Sequential(*stage))
        self.blocks = nn.Sequential(*stages)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features of two stages' ends, and the activations (0..6) in the second block of the last stage.

        Args: images float32 (B, 3, H, W) in 0..255.
        Returns: [(B, 40, H/8, W/8), (B, 112, H/16, W/16), (B, 672, H/16, W/16)].
        """
        x = F.relu6(self.bn1(self.conv_stem((images - 127.0) / 128.0)))
        at_8 = self.blocks[:3](x)
        last = self.blocks[4]
        assert isinstance(last, nn.Sequential)
        first, second, *others = last
        assert isinstance(second, InvertedResidual)
        x = first(self.blocks[3](at_8))
        activations = second.activations(x)
        x = nn.Sequential(*others)(second.finish(x, activations))
        return [at_8, x, activations]
