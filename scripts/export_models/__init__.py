"""Turns network definitions and trained weights into the models that the service runs.

A model is a folder of a Triton model repository: ``config.pbtxt`` (and ``configs/cpu.pbtxt``)
beside ``1/model.onnx``. This package writes such folders; its command line is
``python -m scripts.export_models --help``. The service itself needs neither it nor PyTorch.

- ``darknet``: YOLOv3 as darknet describes and stores it, ``.cfg`` and ``.weights``
- ``yolov3``, ``resnet50``: the networks in PyTorch, each with what turns pixels into answers
- ``contract``: what those modules take and give: tensor names, types, dims, limits
- ``onnx_file``: PyTorch to ONNX, and the proof that both give the same answers
- ``triton_config``: the two ``config.pbtxt`` of a model
- ``repository``: all files of a model, or none
- ``errors``: what may go wrong
"""
