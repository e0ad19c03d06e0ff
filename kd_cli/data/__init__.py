"""Datasets, from a source to the batches of a training step.

    dataset       `Dataset`: splits, shapes and classes that were checked
    arrays        `Arrays`, what a source returns; decoded images on the disk
    pixels        the form and the range of a source's images
    token_ids     the form and the range of a source's token ids
    sources       digits and tensorflow-datasets
    archives      `.npz` files, looked at before they are unpacked
    npz_file      `.npz` files
    folders       folders of images, as a source
    listing       what lies in such a folder
    pictures      one image file becomes pixels
    texts         texts of a file or folder, as a source
    text_files    what lies in such a file
    tokenizer     how texts become token ids: one of the next two, made or read
    words         by a word list
    subwords      by parts of words
    vader         sentences of film reviews, out of a package
    labels        class numbers without images
    splits        random samples that keep the classes' shares
    augment       augmentation nodes
    views         which pixels student and teacher get
    batches       where a step's batch comes from

To add a dataset of tensorflow-datasets: write conf/dataset/NAME.yaml that extends `tfds`, such as
cifar10.yaml; no code is needed.

To add another dataset: write a function that returns `Arrays` in a file of its own, next to
`npz_file` and `folders`, and add the function's name to PUBLIC below, so that YAML can write
kd_cli.data.FUNCTION. Then write conf/dataset/NAME.yaml with `name`, `image_shape` (of texts
`length` and `vocabulary`), `num_classes` and a `source` whose `_target_` names the function.

To add an augmentation node: write a function in `augment`, add its name to PUBLIC below, and name
it in a file of conf/augment/.
"""

from kd_cli import public_names

# The file of each name that YAML uses.
PUBLIC = {
    "Arrays": "arrays",
    "digits": "sources",
    "tfds": "sources",
    "npz": "npz_file",
    "image_folder": "folders",
    "text": "texts",
    "film_reviews": "vader",
    "central_crop": "augment",
    "horizontal_flip": "augment",
    "inception_crop": "augment",
    "mixup": "augment",
    "pad_and_crop": "augment",
    "random_crop": "augment",
    "resize": "augment",
}
__getattr__ = public_names(__name__, PUBLIC)
