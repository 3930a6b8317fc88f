"""CAST: Domain Enhanced Arbitrary Image Style Transfer via Contrastive Learning (Zhang et al., SIGGRAPH 2022).

A VGG-shaped encoder with its own weights, AdaIN at relu4_1, and a decoder into the domain of paintings.  Behaviour of
the authors' CAST_pytorch, direction photograph to painting.
"""
from dataclasses import replace
from functools import partial

from torch import Tensor, nn

from ..pictures import mean_std, normalise
from . import vgg
from .common import Features, Limits, Part, Recipe, StyleTransferModel, adain_decoder, decode, module_part, tiled

# The encoder has VGG-19's layout up to relu4_1, saved in four slices, and takes pictures in [-1, 1].  It was trained
# from scratch: the weights of a real VGG do not fit.
ENCODER = replace(
    vgg.NORMALISED, name="CAST encoder", mean=(0.5, 0.5, 0.5), scale=(2.0, 2.0, 2.0),
    keys={vgg.INPUT: "enc_1.0", "conv1_1": "enc_1.2",
          "conv1_2": "enc_2.1", "conv2_1": "enc_2.5",
          "conv2_2": "enc_3.1", "conv3_1": "enc_3.5",
          "conv3_2": "enc_4.1", "conv3_3": "enc_4.4", "conv3_4": "enc_4.7", "conv4_1": "enc_4.11"})
_HALO = 16  # receptive radius of the first two blocks, in pixels, with room


def adain(content: Tensor, style_mean: Tensor, style_std: Tensor) -> Tensor:
    """Content features with the style's mean and standard deviation (Huang & Belongie 2017, eq. 8)."""
    return normalise(content) * style_std + style_mean


class CAST(StyleTransferModel):
    """Sizes of content and style are independent; odd content sizes come out rounded up to a multiple of 8."""

    name = "CAST"
    minimum_content = 9
    minimum_style = 9

    def __init__(self, encoder: vgg.VGG, decoder: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder.decoder

    def _relu4_1(self, picture: Tensor, limits: Limits) -> Tensor:
        net = self.encoder

        def two_blocks(x: Tensor) -> Features:
            return (net.pool(net.block(2, net.pool(net.block(1, x)[1]))[1]),)

        x = tiled(two_blocks, net.normalise(picture), 1 / 4, limits.tile, _HALO)[0]
        return net.block(4, net.pool(net.block(3, x)[1]), until="relu4_1")[1]

    def encode_content(self, picture: Tensor, limits: Limits) -> Features:
        return (self._relu4_1(picture, limits),)

    def encode_style(self, picture: Tensor, limits: Limits) -> Features:
        return mean_std(self._relu4_1(picture, limits))

    def transform(self, content: Features, style: Features, limits: Limits) -> Features:
        return (adain(*content, *style),)

    def decode(self, features: Features, limits: Limits) -> Tensor:
        return self.encoder.denormalise(decode(self.decoder, features[0], limits))


class Decoder(nn.Module):
    """``decoder.*``, the keys of a released file."""

    def __init__(self):
        super().__init__()
        self.decoder = adain_decoder()


ENCODER_PART = Part("CAST encoder", "latest_net_AE.pth", ENCODER.shapes, partial(vgg.VGG, ENCODER))
# Both decoders have the same keys and shapes; only their names differ.
TO_PAINTING = module_part("CAST decoder for paintings", "latest_net_Dec_B.pth", Decoder,
                          named=lambda name: "dec_a" not in name.lower())
TO_PHOTOGRAPH = module_part("CAST decoder for photographs", "latest_net_Dec_A.pth", Decoder,
                            named=lambda name: "dec_a" in name.lower())

RECIPES = (Recipe("CAST", (ENCODER_PART, TO_PAINTING), CAST, unused=(TO_PHOTOGRAPH,)),)
