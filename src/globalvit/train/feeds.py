"""Which feed a config's model needs."""

from typing import Any

from globalvit.models.variants import Kind, ModelSpec
from globalvit.train.feed import Feed
from globalvit.train.feed_classify import ClassifyFeed
from globalvit.train.feed_detect import DetectFeed
from globalvit.train.feed_segment import SegmentFeed
from globalvit.train.fields import TrainConfig

FEEDS: dict[Kind, type[Feed[Any]]] = {"classify": ClassifyFeed, "segment": SegmentFeed, "detect": DetectFeed}


def feed_for(config: TrainConfig) -> Feed[Any]:
    """What the config's model is fed with."""
    return FEEDS[ModelSpec(model=config.model).kind](config)
