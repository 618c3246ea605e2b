"""The work of a plan, one attention call or the prefill of a language model: its sizes, bytes and operations."""

from __future__ import annotations

from dataclasses import dataclass

from heteroring.ring.transport.limits import SLOTS

ITEMSIZE = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Work:
    """`layers` calls over one sequence, and what a rank must hold.

    `weight_bytes` on every rank; `token_bytes` for each of its own tokens: KV of all layers, which are `kept_bytes` of
    them, and the activations of one; `product_flops` for each token and layer besides attention.
    """

    name: str
    heads: int
    kv_heads: int
    head_dim: int
    dtype: str
    token_bytes: int
    kept_bytes: int
    layers: int = 1
    weight_bytes: int = 0
    product_flops: float = 0.0

    @property
    def key_bytes(self) -> int:
        """Bytes of a token's key and value in one layer."""
        return 2 * self.kv_heads * self.head_dim * ITEMSIZE[self.dtype]

    @property
    def pair_flops(self) -> int:
        """Operations of a score pair in all heads of one layer."""
        return 4 * self.heads * self.head_dim

    @classmethod
    def attention(cls, heads: int, kv_heads: int, head_dim: int, dtype: str) -> Work:
        """One attention call. A token has q, k, v and out in `dtype`, an fp32 out that is merged into, and an LSE.

        Args:
            heads: Query heads.
            kv_heads: Heads of keys and values.
            head_dim: Elements of a head.
            dtype: Name of the element type, such as "bfloat16".

        Returns:
            The work.
        """
        itemsize = ITEMSIZE[dtype]
        kept_bytes = 2 * kv_heads * head_dim * itemsize
        token_bytes = kept_bytes + 2 * heads * head_dim * itemsize + heads * (head_dim + 1) * 4
        return cls("one attention call", heads, kv_heads, head_dim, dtype, token_bytes, kept_bytes)

    @classmethod
    def language_model(
        cls,
        name: str,
        *,
        layers: int,
        emb_dim: int,
        hidden_dim: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        parameters: int,
        layer_parameters: int,
        dtype: str,
    ) -> Work:
        """A prefill that ends with the last token's logits, every rank holding all weights.

        Beside KV, a token has at the peak of a layer, in its gated MLP, gate and up, the activated gate and their
        product, and three hidden states: what the recorded LLaMA took on H200s (a test compares them).

        Args:
            name: What tables call the model.
            layers: Transformer blocks.
            emb_dim: Elements of a hidden state.
            hidden_dim: Elements of the MLP's hidden layer.
            heads: Query heads.
            kv_heads: Heads of keys and values.
            head_dim: Elements of a head.
            parameters: Weights of the whole model.
            layer_parameters: Weights of one block that a token is multiplied by.
            dtype: Name of the element type, such as "bfloat16".

        Returns:
            The work.
        """
        itemsize = ITEMSIZE[dtype]
        cache = 2 * layers * kv_heads * head_dim * itemsize
        activations = (4 * hidden_dim + 3 * emb_dim) * itemsize
        return cls(
            name,
            heads,
            kv_heads,
            head_dim,
            dtype,
            cache + activations,
            cache,
            layers,
            parameters * itemsize,
            2.0 * layer_parameters,
        )

    def memory_bytes(self, tokens: int, longest_message: int, earlier: int = 0) -> int:
        """Bytes that a rank takes.

        Args:
            tokens: Tokens that it computes.
            longest_message: Keys of the longest message, of which there are SLOTS buffers.
            earlier: Tokens before them whose KV it holds.

        Returns:
            Bytes.
        """
        kept = self.weight_bytes + self.kept_bytes * earlier
        return kept + self.token_bytes * tokens + SLOTS * self.key_bytes * longest_message
