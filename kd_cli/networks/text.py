"""Networks of texts: functions `(length, vocabulary, num_classes, *, ...) -> keras.Model`.

They end in logits. They take token ids [B, L], int32, of which 0 is padding; what is padding
changes no logit. They are made of Keras's layers alone, so `model.keras` loads without kd. A text
of padding alone has no mean: kd gives none.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops

from kd_cli.errors import ConfigError

# Of the hash of two words; their product stays below 2^31 with so many ids.
_FACTOR, _MOST_IDS = 31_337, 68_000


def bag(
    length: int,
    vocabulary: int,
    num_classes: int,
    *,
    width: int = 16,
    buckets: int = 10_000,
    dropout: float = 0.3,
) -> keras.Model:
    """A bag of words and pairs of words: the mean of their embeddings, and one dense layer.

    Args:
        length: L.
        vocabulary: Number of ids.
        num_classes: Number of logits.
        width: Of an embedding.
        buckets: A pair of neighbouring words has the embedding of its hash, one of so many; 0 uses
            words alone.
        dropout: Rate on the embeddings.

    The defaults have 256,066 parameters for 6,002 ids and two classes.

    Raises:
        ConfigError: Pairs of more than 68,000 ids.

    Source: Joulin et al. 2017, "Bag of tricks for efficient text classification".
    """
    inputs = _input(length)
    ids = inputs
    if buckets and length > 1:
        if vocabulary > _MOST_IDS:
            raise ConfigError(
                f"bag: pairs of words need a vocabulary of at most {_MOST_IDS:,} ids, received "
                f"{vocabulary:,}; type buckets=0 to use words alone"
            )
        first, second = inputs[:, :-1], inputs[:, 1:]
        both = ops.cast(ops.not_equal(second, 0), "int32")  # padding comes last
        pairs = vocabulary + ops.mod(first * _FACTOR + second, buckets)
        ids = layers.Concatenate()([inputs, pairs * both])
    x = layers.Embedding(vocabulary + buckets, width, mask_zero=True)(ids)
    x = layers.Dropout(dropout)(x) if dropout else x
    x = layers.GlobalAveragePooling1D()(x)  # of what is not masked
    return keras.Model(inputs, _logits(x, num_classes), name="bag")


def text_cnn(
    length: int,
    vocabulary: int,
    num_classes: int,
    *,
    width: int = 64,
    filters: int = 64,
    sizes: list[int] | None = None,
    dropout: float = 0.5,
) -> keras.Model:
    """Convolutions over 3, 4 and 5 words, the largest value of each, and one dense layer.

    Args:
        length: L.
        vocabulary: Number of ids.
        num_classes: Number of logits.
        width: Of an embedding.
        filters: Of each size.
        sizes: Words that a convolution sees; null is [3, 4, 5].
        dropout: Rate before the dense layer.

    Source: Kim 2014, "Convolutional neural networks for sentence classification".
    """
    inputs = _input(length)
    words = ops.cast(ops.expand_dims(ops.not_equal(inputs, 0), -1), "float32")
    x = layers.Multiply()([layers.Embedding(vocabulary, width)(inputs), words])
    largest = []
    for size in sizes or [3, 4, 5]:
        y = layers.Conv1D(filters, size, padding="same", activation="relu")(x)
        # Nothing is below 0, so a window on padding is never the largest.
        largest.append(layers.GlobalMaxPooling1D()(layers.Multiply()([y, words])))
    x = layers.Concatenate()(largest) if len(largest) > 1 else largest[0]
    x = layers.Dropout(dropout)(x) if dropout else x
    return keras.Model(inputs, _logits(x, num_classes), name="text_cnn")


def transformer_encoder(
    length: int,
    vocabulary: int,
    num_classes: int,
    *,
    width: int = 64,
    blocks: int = 2,
    heads: int = 4,
    mlp: int = 256,
    dropout: float = 0.1,
) -> keras.Model:
    """A transformer encoder: words and positions, attention to what is not padding, their mean.

    Args:
        length: L.
        vocabulary: Number of ids.
        num_classes: Number of logits.
        width: Of a word, a multiple of `heads`.
        blocks: Attention and two dense layers, each behind a LayerNormalization.
        heads: Of the attention.
        mlp: Width between the two dense layers of a block.
        dropout: Rate on the embeddings and at the end of both parts of a block.

    Raises:
        ConfigError: A width that can't be divided.

    Source: Vaswani et al. 2017, "Attention is all you need"; normalised first, as Xiong et al.
    2020.
    """
    if width % heads:
        raise ConfigError(f"transformer_encoder: width={width} must be a multiple of heads={heads}")
    inputs = _input(length)
    words = ops.not_equal(inputs, 0)
    positions = ops.cumsum(ops.ones_like(inputs), axis=1) - 1
    x = layers.Embedding(vocabulary, width, name="words")(inputs)
    x = layers.Add()([x, layers.Embedding(length, width, name="positions")(positions)])
    x = _dropped(x, dropout)
    seen = ops.expand_dims(words, 1)  # [B, 1, L]: each word looks at all of these
    for _ in range(blocks):
        y = _norm(x)
        attention = layers.MultiHeadAttention(heads, width // heads)
        x = layers.Add()([x, _dropped(attention(y, y, attention_mask=seen), dropout)])
        y = layers.Dense(mlp, activation="gelu")(_norm(x))
        x = layers.Add()([x, _dropped(layers.Dense(width)(y), dropout)])
    x = layers.GlobalAveragePooling1D()(_norm(x), mask=words)
    return keras.Model(inputs, _logits(x, num_classes), name="transformer_encoder")


def _input(length: int) -> Any:
    return keras.Input((length,), dtype="int32", name="ids")


def _norm(x: Any) -> Any:
    return layers.LayerNormalization(epsilon=1e-6)(x)


def _dropped(x: Any, rate: float) -> Any:
    return layers.Dropout(rate)(x) if rate else x


def _logits(x: Any, num_classes: int) -> Any:
    # float32 under a mixed policy too: bfloat16 logits have three significant digits.
    return layers.Dense(num_classes, dtype="float32", name="logits")(x)
