"""NNI's attention with a choice among its widths."""

import torch
import torch.nn.functional as F
from torch import Tensor

from nni_fairdarts._nni import MixedMultiHeadAttention
from nni_fairdarts.supernet.operations import GatedOperation


class GatedAttention(GatedOperation, MixedMultiHeadAttention):
    """Σ_e p_e · [attention over the first e features, then zeros], with the heads of a network of width e.

    NNI's splits its features into heads, and scales them, as the widest network does, whatever the width: what it
    searches is no network of a smaller one. Keys and values with widths of their own are read whole: past the chosen
    width they are zero.
    """

    searchable = ("embed_dim", "kdim", "vdim")

    def forward(self, query, key, value, key_padding_mask=None, need_weights=True, attn_mask=None):
        """(output, attention averaged over the heads or None), as ``nn.MultiheadAttention``."""
        swap = self.batch_first and query.dim() == 3
        query, key, value = (x.transpose(0, 1) if swap else x for x in (query, key, value))
        widths = self.forward_argument("embed_dim")
        total, attention = 0, 0
        for width, weight in (widths if isinstance(widths, dict) else {widths: 1}).items():
            parts = self._parts(width)
            output, seen = F.multi_head_attention_forward(
                query[..., :width],
                key[..., : parts["k_proj_weight"].shape[1]],
                value[..., : parts["v_proj_weight"].shape[1]],
                width,
                self.num_heads,
                in_proj_weight=None,
                add_zero_attn=self.add_zero_attn,
                dropout_p=self.dropout,
                training=self.training,
                key_padding_mask=key_padding_mask,
                need_weights=need_weights,
                attn_mask=attn_mask,
                use_separate_proj_weight=True,
                **parts,
            )
            total = total + weight * F.pad(output, (0, self.embed_dim - width))
            attention = attention + weight * seen if need_weights else None
        return total.transpose(0, 1) if swap else total, attention

    def _projections(self) -> tuple[Tensor, ...]:
        """The weights of query, key and value, (embed_dim, features read) each."""
        if self.in_proj_weight is not None:
            return self.in_proj_weight.chunk(3)
        return self.q_proj_weight, self.k_proj_weight, self.v_proj_weight

    def _parts(self, width: int) -> dict[str, Tensor | None]:
        """The weights of the attention over the first ``width`` features, under torch's names."""
        follows = (True, self.init_arguments["kdim"] is None, self.init_arguments["vdim"] is None)
        query, key, value = (
            weight[:width, : width if narrow else None]
            for weight, narrow in zip(self._projections(), follows, strict=True)
        )
        bias, out = self.in_proj_bias, self.out_proj
        return {
            "q_proj_weight": query,
            "k_proj_weight": key,
            "v_proj_weight": value,
            "in_proj_bias": None if bias is None else bias.unflatten(0, (3, -1))[:, :width].flatten(),
            "bias_k": None if self.bias_k is None else self.bias_k[..., :width],
            "bias_v": None if self.bias_v is None else self.bias_v[..., :width],
            "out_proj_weight": out.weight[:width, :width],
            "out_proj_bias": None if out.bias is None else out.bias[:width],
        }

    def freeze_weight(self, embed_dim, **arguments):
        weights = super().freeze_weight(embed_dim, **arguments)
        if not {"in_proj_weight", "q_proj_weight"} & weights.keys():  # of one width now, though they need not have been
            weights["in_proj_weight"] = torch.cat([w[:embed_dim, :embed_dim] for w in self._projections()])
        return weights
