"""GC ViT and GPViT as Keras applications, and as backbones with an output for each stage."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from inspect import getdoc
from pathlib import Path
from typing import Any, Protocol

import keras

from globalvit.keras import arguments, networks
from globalvit.keras.load import load_weights
from globalvit.models.variants import VARIANTS, GPViTConfig

Shape = Sequence[int | None]


class Application(Protocol):
    """A function that builds one variant, with the arguments of `keras.applications`."""

    def __call__(
        self,
        include_top: bool = True,
        weights: str | Path | None = arguments.IMAGENET,
        input_tensor: Any = None,
        input_shape: Shape | None = None,
        pooling: str | None = None,
        classes: int = arguments.IMAGENET_CLASSES,
        classifier_activation: str | Callable[..., Any] | None = "softmax",
        name: str | None = None,
    ) -> keras.Model:
        """Build the model.

        Args:
            include_top: whether the classification head is part of it.
            weights: `"imagenet"`, the variant's published weights (GC ViT's are for non-commercial use); None for
                fresh ones; another name of the catalog; or a file: an official checkpoint, timm's or our
                safetensors, or the `.weights.h5` of such a model.
            input_tensor: Keras tensor to build upon, in place of a new input.
            input_shape: (height, width, channels), or (channels, height, width) where that is Keras' data format;
                height and width may be None. Left out, the model takes RGB images of any size from 32 pixels. GC ViT's
                attention windows follow a given size: the variant's own from 224 pixels, in proportion below.
            pooling: of the last map, without a head: None, `"avg"` or `"max"`.
            classes: outputs of the head.
            classifier_activation: of the head; None gives logits.
            name: of the model.

        Returns:
            A functional model. It takes images that went through `preprocess_input`.

        Raises:
            ValueError: an argument does not fit; the text says what is expected.
            OSError: the weights cannot be fetched.
        """
        ...


def _application(variant: str, title: str) -> Application:
    def application(
        include_top: bool = True,
        weights: str | Path | None = arguments.IMAGENET,
        input_tensor: Any = None,
        input_shape: Shape | None = None,
        pooling: str | None = None,
        classes: int = arguments.IMAGENET_CLASSES,
        classifier_activation: str | Callable[..., Any] | None = "softmax",
        name: str | None = None,
    ) -> keras.Model:
        source = arguments.read_weights_argument(variant, weights)
        arguments.check_pooling(pooling)
        if include_top:
            classes = arguments.read_classes(weights, source, classes, classifier_activation)
        given = arguments.images(input_shape, input_tensor, source is not None)
        config = arguments.for_images(VARIANTS[variant], given)
        last = networks.maps(_channels_last(given), config)[-1]
        if include_top:
            outputs = networks.classify(last, config, classes, classifier_activation)
        else:
            outputs = _pooled(last, pooling, given)
        model = keras.Model(given.inputs, outputs, name=name or variant)
        if source is not None:
            load_weights(model, source, variant)
        return model

    application.__name__ = application.__qualname__ = title
    application.__doc__ = f"{title}, the variant `{variant}`.\n\n{getdoc(Application.__call__)}"
    return application


def backbone(
    model: str,
    *,
    weights: str | Path | None = arguments.IMAGENET,
    input_tensor: Any = None,
    input_shape: Shape | None = None,
    outputs: tuple[int, ...] | None = None,
    name: str | None = None,
) -> keras.Model:
    """Build a variant as a backbone: images to a list of maps, finest first.

    Args:
        model: a name such as `gcvit_tiny` or `gpvit_l1`.
        weights: as in the applications.
        input_tensor: as in the applications.
        input_shape: as in the applications.
        outputs: blocks of GPViT whose tokens become maps, by default the last one; `(2, 5, 8, 11)` in the papers'
            segmentation systems. The norms of blocks other than the last are fresh, since classifiers have none. GC ViT
            gives the maps of its four stages, each before its downsampling; only the last one is normed.
        name: of the model.

    Raises:
        ValueError: an argument does not fit; the text says what is expected.
        OSError: the weights cannot be fetched.
    """
    variant = arguments.resolve(model)
    source = arguments.read_weights_argument(variant, weights)
    given = arguments.images(input_shape, input_tensor, source is not None)
    config = arguments.for_images(VARIANTS[variant], given)
    if outputs is not None:
        if not isinstance(config, GPViTConfig):
            raise ValueError(
                f"`outputs` chooses blocks of GPViT; {variant} gives the maps of its four stages. "
                f"Received: outputs={outputs}"
            )
        config = replace(config, outputs=tuple(outputs))
    found = [_in_layout(x, given) for x in networks.maps(_channels_last(given), config)]
    built = keras.Model(given.inputs, found, name=name or f"{variant}_backbone")
    if source is not None:
        load_weights(built, source, variant)
    return built


def _channels_last(given: arguments.Images) -> Any:
    """The images as the layers take them: every backend convolves channels-last, TensorFlow on CPU nothing else."""
    if not given.is_channels_first:
        return given.tensor
    return keras.layers.Permute((2, 3, 1), name="to_channels_last")(given.tensor)


def _in_layout(x_BHWC: Any, given: arguments.Images) -> Any:
    """A map in the layout of the images."""
    return keras.layers.Permute((3, 1, 2))(x_BHWC) if given.is_channels_first else x_BHWC


def _pooled(x_BHWC: Any, pooling: str | None, given: arguments.Images) -> Any:
    if pooling is None:
        return _in_layout(x_BHWC, given)
    pool = keras.layers.GlobalAveragePooling2D if pooling == "avg" else keras.layers.GlobalMaxPooling2D
    return pool(data_format="channels_last", name=f"{pooling}_pool")(x_BHWC)


GCViTXXTiny = _application("gcvit_xxtiny", "GCViTXXTiny")
GCViTXTiny = _application("gcvit_xtiny", "GCViTXTiny")
GCViTTiny = _application("gcvit_tiny", "GCViTTiny")
GCViTTiny2 = _application("gcvit_tiny2", "GCViTTiny2")
GCViTSmall = _application("gcvit_small", "GCViTSmall")
GCViTSmall2 = _application("gcvit_small2", "GCViTSmall2")
GCViTBase = _application("gcvit_base", "GCViTBase")
GCViTLarge = _application("gcvit_large", "GCViTLarge")
GCViTLarge384 = _application("gcvit_large_384", "GCViTLarge384")
GCViTLarge512 = _application("gcvit_large_512", "GCViTLarge512")
GPViTL1 = _application("gpvit_l1", "GPViTL1")
GPViTL2 = _application("gpvit_l2", "GPViTL2")
GPViTL3 = _application("gpvit_l3", "GPViTL3")
GPViTL4 = _application("gpvit_l4", "GPViTL4")
