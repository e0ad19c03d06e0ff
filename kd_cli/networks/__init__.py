"""Networks: how they are built, read from files, wrapped, evaluated and measured.

    simple            mlp, cnn and vgg
    residual          ResNet-9, the ResNets of the CIFAR tables, wide ResNets, ResNet-18 and 50
    mobile            MobileNetV2 and the ShuffleNets, for small images
    transformer       vision transformers with a distillation token
    efficientnet      EfficientNet-Lite0, with ImageNet weights out of a package
    bit               BiT ResNets, with their published weights
    applications      networks of keras.applications, with their own preprocessing
    published         weights out of Keras's cache, or from their address
    weights_file      weights of such a network out of a file
    blocks            what residual, mobile and vgg are made of
    wrap              what is put around a network: pixels in, logits out, checked
    doubts            what speaks against a network before it is trained
    logits            teachers that end in a softmax, or in one output, brought to logits
    keras_file        `.keras` files
    torch_file        tensors of an old PyTorch file
    saved_model       SavedModel directories
    saved_model_graph the operations that a SavedModel may hold
    ensemble          several networks as one
    reused_head       students that end in their teacher's classifier
    taps              layers inside a network, named and asked for
    predict           logits of a network in inference mode
    fused_batch_norm  a faster BatchNormalization for training
    cost              FLOPs and latency

To add a network: write a function `(image_shape, num_classes, *, ...) -> keras.Model` that ends in
logits, in `simple` or in a file of its own. Add its name to PUBLIC below, so that YAML can write
kd_cli.networks.NAME. Then write conf/network/NAME.yaml with its `_target_` and

    image_shape: ${kd.input_shape:${dataset.image_shape},${..input.size}}
    num_classes: ${dataset.num_classes}

That is a teacher and a student too: teacher=NAME, student=NAME. A network of other sizes is a short
file beside it, such as conf/network/resnet20.yaml. A file in conf/student/ or conf/teacher/ of the
same name is used instead, for an option that also needs other keys, such as `input`.
"""

from kd_cli import public_names

# The file of each name that YAML uses.
PUBLIC = {
    "application": "applications",
    "vit": "transformer",
    "cnn": "simple",
    "mlp": "simple",
    "bit_resnet": "bit",
    "efficientnet_lite0": "efficientnet",
    "resnet": "residual",
    "resnet9": "residual",
    "wide_resnet": "residual",
    "vgg": "simple",
    "imagenet_resnet": "residual",
    "mobilenet_v2": "mobile",
    "shufflenet_v1": "mobile",
    "shufflenet_v2": "mobile",
}
__getattr__ = public_names(__name__, PUBLIC)
