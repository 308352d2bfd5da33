"""Two examples per command, shown at the top of its help page."""

EXAMPLES = {
    "train": (
        "globalvit train --config digits",
        "globalvit train --data-dir photos --model gcvit_tiny --epochs 30 --tag photos",
    ),
    "validate": (
        "globalvit validate --checkpoint runs/photos",
        "globalvit validate --model gcvit_tiny --data-dir imagenet --output scores",
    ),
    "predict": (
        "globalvit predict --checkpoint runs/photos holiday/ --csv answers.csv",
        "globalvit predict --checkpoint runs/photos cat.jpg dog.jpg --output found --draw",
    ),
    "explain": (
        "globalvit explain --checkpoint runs/photos cat.jpg",
        "globalvit explain --checkpoint runs/photos cat.jpg --kind local --pixel 320,200",
    ),
    "models": ("globalvit models", "globalvit models 'gpvit_l1*' --measure"),
    "convert": (
        "globalvit convert runs/photos photos.pth --to timm",
        "globalvit convert runs/photos photos.pth.tar --to official",
    ),
    "export": (
        "globalvit export --checkpoint runs/photos --output photos.onnx",
        "globalvit export --model gcvit_tiny --output gcvit_tiny.onnx --image-size 224 --preprocessing nhwc",
    ),
    "push": (
        "globalvit push runs/photos me/photos --dry-run card",
        "globalvit push runs/photos me/photos --public --license mit",
    ),
    "data": ("globalvit data check --data-dir photos", "globalvit data preview --data-dir photos"),
    "data check": (
        "globalvit data check --data-dir photos",
        "globalvit data check --data-dir coco --split val --json problems.json",
    ),
    "data preview": (
        "globalvit data preview --data-dir photos --output preview.png",
        "globalvit data preview --data-dir streets --model gcvit_tiny_segformer",
    ),
    "data split": (
        "globalvit data split unsorted photos",
        "globalvit data split unsorted photos --way link --fraction 0.2",
    ),
    "data pack": (
        "globalvit data pack photos photo_shards",
        "globalvit data pack imagenet imagenet_shards --splits val",
    ),
    "data shapes": ("globalvit data shapes drawn", "globalvit data shapes drawn --train 100 --val 20"),
    "data lmdb": (
        "globalvit data lmdb build imagenet imagenet_lmdb",
        "globalvit data lmdb verify imagenet_lmdb imagenet",
    ),
    "data lmdb build": (
        "globalvit data lmdb build imagenet imagenet_lmdb",
        "globalvit data lmdb build imagenet imagenet_lmdb --splits val",
    ),
    "data lmdb verify": (
        "globalvit data lmdb verify imagenet_lmdb imagenet",
        "globalvit data lmdb verify imagenet_lmdb imagenet --splits val",
    ),
    "benchmark": (
        "globalvit benchmark --model gcvit_tiny,gpvit_l1 --batch-size 1,8",
        "globalvit benchmark --model gcvit_tiny --peer auto --compile eager,deployed --json speed.json",
    ),
    "demo": ("globalvit demo", "globalvit demo --checkpoint runs/photos"),
    "doctor": ("globalvit doctor", "globalvit doctor --json"),
}
