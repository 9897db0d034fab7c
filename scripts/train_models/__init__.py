"""Trains the small pair: a narrow YOLOv3 and a narrow ResNet-50, on photos with boxes.

Its command line is ``python -m scripts.train_models --help``. It reads photos in VOC's form
(``benchmarks.voc``) and writes what ``scripts.export_models`` reads: darknet's ``.cfg`` and
``.weights``, PyTorch's state dict.

- ``photos``: annotated photos in memory, and in which order they are seen
- ``augmentation``: photos and crops, changed at random
- ``crops``: annotated objects' crops, in batches
- ``detection_loss``: what a detector's answers cost
- ``training``: phases, learning rate, averaged weights, checkpoints; knows no task
- ``backbone``, ``detector``, ``embedder``: the three tasks
"""
