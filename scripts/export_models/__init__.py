"""Turns network definitions and trained weights into the models that the service runs.

A model is a folder of a Triton model repository: ``config.pbtxt`` (and ``configs/cpu.pbtxt``)
beside ``1/model.onnx``. This package writes such folders; its command line is
``python -m scripts.export_models --help``. The service itself needs neither it nor PyTorch.

- ``official``: the published models, as facts: where their weights are, what is in them
- ``plans``: from a command line to what is to be done, checked before any work
- ``download``: a file of known SHA-256, whole or not at all; ``progress``: what one sees of it
- ``darknet``: YOLOv3 as darknet describes and stores it, ``.cfg`` and ``.weights``
- ``yolov3``, ``resnet50``: the networks in PyTorch, each with what turns pixels into answers
- ``half_precision``: those networks in FP16
- ``contract``: what the models take and give: tensor names, types, dims, limits
- ``formats``: what may be chosen of an ONNX file: precision, operator set
- ``onnx_file``: PyTorch to ONNX, and the proof that both give the same answers
- ``triton_config``: the two ``config.pbtxt`` of a model
- ``repository``: all files of a model, or none
- ``errors``: what may go wrong
"""
