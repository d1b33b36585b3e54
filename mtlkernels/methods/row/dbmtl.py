"""DB-MTL: averages of the gradients of log-losses, all at the length of the longest."""

from __future__ import annotations

from mtlkernels.methods.gram.avgnorm import AvgNorm
from mtlkernels.methods.row.tracked import Tracked


class DBMTL(Tracked):
    r"""DB-MTL (Lin et al., arXiv 2308.12029): averaged gradients, at the longest one's length.

    .. math::
        m_t \leftarrow b \, m_t + (1 - b) \nabla \log L_t, \qquad
        d = \max_j \lVert m_j \rVert \sum_t \frac{m_t}{\lVert m_t \rVert}

    It is `Tracked(AvgNorm("max"), beta, log_losses=True)`, whose docstring has the conventions:
    memory, bad steps, losses of 0 and below, and heads. The defaults are LibMTL's, without the 1e-8
    in its logarithm. An average of zero gets weight 0 and does not count.

    Args:
        beta: b, in 0 .. 1, 1 excluded; 0 is without averages. The paper searches 0.1, 0.5 and 0.9,
            each also divided by sqrt(k).
        sigma: in step k, b = beta / k^sigma.
        log_losses: average the gradients of log L_t; else those of L_t.

    Use when:
        the losses differ in units, and batches are small.

    Avoid when:
        memory is short (T N numbers): `LogLosses(AvgNorm("max"))` is the rule without averages. Or
        one gradient is long because it is noisy: all others are lengthened to it.
    """

    def __init__(self, beta: float = 0.9, *, sigma: float = 0.0, log_losses: bool = True) -> None:
        super().__init__(AvgNorm("max"), beta, sigma=sigma, log_losses=log_losses)
