"""Flow attention: linear attention whose keys compete for what little flow there is."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from attnlib.atlas import Promises, Taxonomy, mechanism
from attnlib.checks import check_count
from attnlib.read.chunked_softmax import chunks
from attnlib.read.feature_checks import check_features


class Flows(NamedTuple):
    """What passes through each query (a sink) and each key (a source) of the network."""

    incoming: Float[Tensor, "*heads N"]
    outgoing: Float[Tensor, "*heads M"]
    conserved_incoming: Float[Tensor, "*heads N"]
    conserved_outgoing: Float[Tensor, "*heads M"]


class FlowState(NamedTuple):
    """What causal flow attention keeps of the past: sums of features, and the D x E memory."""

    tokens: int
    key_sum: Float[Tensor, "*heads 1 D"]
    query_sum: Float[Tensor, "*heads 1 D"]
    conserved_key_sum: Float[Tensor, "*heads 1 D"]
    conserved_query_sum: Float[Tensor, "*heads 1 D"]
    log_total: Float[Tensor, "*heads 1"]
    memory: Float[Tensor, "*heads D E"]


def flows(query: Float[Tensor, "*heads N D"], key: Float[Tensor, "*heads M D"]) -> Flows:
    r"""The flows before and after conservation, in O((N + M) D).

    .. math:: I_i = \phi(q_i) \cdot \sum_j \phi(k_j) \qquad
              \hat I_i = \phi(q_i) \cdot \sum_j \phi(k_j) / O_j
    .. math:: O_j = \phi(k_j) \cdot \sum_i \phi(q_i) \qquad
              \hat O_j = \phi(k_j) \cdot \sum_i \phi(q_i) / I_i

    with phi the sigmoid. I_i is what query i receives and O_j what key j sends. Dividing phi(q_i)
    by I_i lets every query receive exactly 1; then key j sends hat O_j, and these sum to N.
    Dividing phi(k_j) by O_j lets every key send exactly 1; then hat I_i sum to M.
    Source: Wu et al. (2022), "Flowformer". Derived in chapter 3.1.
    """
    sink, source = query.sigmoid(), key.sigmoid()
    incoming = along(sink, source.sum(-2, keepdim=True))
    outgoing = along(source, sink.sum(-2, keepdim=True))
    sent = (source / outgoing[..., None]).sum(-2, keepdim=True)
    received = (sink / incoming[..., None]).sum(-2, keepdim=True)
    return Flows(incoming, outgoing, along(sink, sent), along(source, received))


def causal_flows(query: Float[Tensor, "*heads N D"], key: Float[Tensor, "*heads M D"]) -> Flows:
    r"""The flows of the tokens so far: every sum of `flows` becomes a mean over positions <= i.

    Query i receives from the keys j <= i. Key j is measured by the queries i <= j, those that are
    there when it comes, although in a causal network it sends to those after it. So every query
    still receives exactly 1, while for the keys conservation is an approximation.
    Source: the causal version in the code of Wu et al. (2022).
    """
    queries, keys = query.shape[-2], key.shape[-2]
    sink, source = query.sigmoid(), key.sigmoid()
    incoming = along(sink, running_mean(source, queries))
    outgoing = along(source, running_mean(sink, keys))
    sent = running_mean(source / outgoing[..., None], queries)
    received = running_mean(sink / incoming[..., None], keys)
    return Flows(incoming, outgoing, along(sink, sent), along(source, received))


def dense_flow_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads M D"],
    value: Float[Tensor, "*heads M E"],
    *,
    is_causal: bool = False,
) -> Float[Tensor, "*heads N E"]:
    """Flow attention by its N x M weights: the oracle of `flow_attention`."""
    if 0 in (query.shape[-2], key.shape[-2]):
        return nothing(query, value)
    weights = causal_flow_weights if is_causal else flow_weights
    return weights(query, key).to(value.dtype) @ value


def flow_weights(
    query: Float[Tensor, "*heads N D"], key: Float[Tensor, "*heads M D"]
) -> Float[Tensor, "*heads N M"]:
    r"""The weights that flow attention implies, from the table of capacities phi(Q) phi(K)^T.

    .. math:: w_{ij} = \mathrm{sigmoid}(\tfrac{N}{M} \hat I_i)\; p_{ij}\;
              M\,\mathrm{softmax}(\hat O)_j, \qquad
              p_{ij} = \frac{\phi(q_i) \cdot \phi(k_j)}{\sum_l \phi(q_i) \cdot \phi(k_l)}

    p are the weights of plain linear attention with phi = sigmoid, whose rows sum to one. The
    other two factors belong to a query alone and to a key alone.
    """
    queries, keys = query.shape[-2], key.shape[-2]
    capacity = query.sigmoid() @ key.sigmoid().mT
    per_sink = capacity / capacity.sum(-1, keepdim=True)
    per_source = capacity / capacity.sum(-2, keepdim=True)
    competition = keys * per_sink.sum(-2, keepdim=True).softmax(-1)
    allocation = torch.sigmoid(queries / keys * per_source.sum(-1, keepdim=True))
    return allocation * per_sink * competition


def causal_flow_weights(
    query: Float[Tensor, "*heads N D"], key: Float[Tensor, "*heads M D"]
) -> Float[Tensor, "*heads N M"]:
    """The weights of the causal form: two triangles of the same table of capacities."""
    capacity = query.sigmoid() @ key.sigmoid().mT
    lower = capacity.tril()  # what query i receives from keys j <= i
    upper = capacity.triu()  # what key j sends to queries i <= j
    queries, keys = capacity.shape[-2:]
    sees = counts(queries, keys, capacity)
    seen = counts(keys, queries, capacity)
    received = upper * (sees / lower.sum(-1))[..., None]
    sent = lower * (seen / upper.sum(-2))[..., None, :]
    outgoing = received.sum(-2) / seen
    sums = torch.stack([outgoing[..., : j + 1].logsumexp(-1) for j in range(keys)], dim=-1)
    competition = torch.arange(1, keys + 1).to(capacity) * (outgoing - sums).exp()
    allocation = torch.sigmoid(sent.sum(-1) / sees)
    per_sink = lower / lower.sum(-1, keepdim=True)
    return allocation[..., None] * per_sink * competition[..., None, :]


def flow_attention_step(
    state: FlowState | None,
    query: Float[Tensor, "*heads 1 D"],
    key: Float[Tensor, "*heads 1 D"],
    value: Float[Tensor, "*heads 1 E"],
) -> tuple[Float[Tensor, "*heads 1 E"], FlowState]:
    """One token of causal flow attention: (read, new state). Pass None as the first state.

    The state holds 4 D + D E + 1 numbers for each head and a count, whatever the length.
    """
    sink, source, content = features(query, key, value)
    if state is None:
        state = empty_flow_state(sink, content)
    tokens = state.tokens + 1
    key_sum, query_sum = state.key_sum + source, state.query_sum + sink
    incoming, outgoing = along(sink, key_sum) / tokens, along(source, query_sum) / tokens
    conserved_key_sum = state.conserved_key_sum + source / outgoing[..., None]
    conserved_query_sum = state.conserved_query_sum + sink / incoming[..., None]
    allocation = torch.sigmoid(along(sink, conserved_key_sum) / tokens)
    sent = along(source, conserved_query_sum) / tokens
    log_total = torch.logaddexp(state.log_total, sent)
    competition = tokens * (sent - log_total).exp()
    memory = state.memory + source.mT @ (competition[..., None] * content)
    read = (allocation / incoming / tokens)[..., None] * (sink @ memory)
    sums = (key_sum, query_sum, conserved_key_sum, conserved_query_sum)
    return read.to(value.dtype), FlowState(tokens, *sums, log_total, memory)


@mechanism(
    key="flowformer",
    paper="flowformer",
    chapter="3-linear/feature-maps",
    section="flow",
    step="weight",
    idea="what a query receives and a key sends is conserved, so keys compete and queries share",
    equation=r"\sigma(\tfrac{N}{M}\hat I) \odot \tfrac{\phi(Q)}{I}"
    r"\left(\phi(K)^\top (M\,\mathrm{softmax}(\hat O) \odot V)\right)",
    cost="time (N + M) D E, memory (N + M)(D + E) + D E",
    oracle=dense_flow_attention,
    recurrent=flow_attention_step,
    promises=Promises(
        normalized=False,
        grouped_query=False,
        padding=False,
        constant_state=True,
        score_range=1e3,
    ),
    taxonomy=Taxonomy(
        sequences="self", levels="single", positions="soft", representations="multi-head"
    ),
)
def flow_attention(
    query: Float[Tensor, "*heads N D"],
    key: Float[Tensor, "*heads M D"],
    value: Float[Tensor, "*heads M E"],
    *,
    is_causal: bool = False,
    chunk: int = 64,
) -> Float[Tensor, "*heads N E"]:
    r"""Linear attention with phi = sigmoid, a softmax over the keys and a gate for each query.

    .. math:: o_i = \sigma(\tfrac{N}{M} \hat I_i)\, \frac{\phi(q_i)}{I_i} \cdot
              \sum_j \phi(k_j)\, M\,\mathrm{softmax}(\hat O)_j\, v_j^\top

    with the flows of `flows`: keys compete for the queries' attention (softmax), and queries that
    more flow reaches let more of it through (sigmoid). There is no scale. The weights of a row are
    positive and do not sum to one. With `is_causal` the flows are those of `causal_flows`, and the
    softmax over the keys is the one over the keys so far, times their number.

    Shapes as in `attend`. Cost: time (N + M) D E. Half precision is computed in float32; a causal
    hat O can grow as fast as exp(-k) for a key that follows much smaller ones, so its gradient is
    promised to stay finite for scores up to 1e3 only. Where all entries of query and key lie below
    about -45 in float32, every flow underflows, and there is nothing to divide by.
    Raises ValueError or TypeError naming the argument that does not fit.
    Source: Wu et al. (2022). The paper writes no factor M at the softmax and no N / M in the gate;
    both are in the authors' code, which also bounds hat O to [-1, 1] and adds 1e-6 to every flow.
    Neither bound nor 1e-6 is used here, so that conservation is exact. Derived in chapter 3.1.
    """
    check_features(query, key, value)
    check_count("chunk", chunk, least=1)
    queries, keys = query.shape[-2], key.shape[-2]
    if 0 in (queries, keys):
        return nothing(query, value)
    if is_causal:
        return causal_flow_read(query, key, value, chunk)
    sink, source, content = features(query, key, value)
    flow = flows(promoted(query), promoted(key))
    competition = keys * flow.conserved_outgoing.softmax(-1)
    memory = source.mT @ (competition[..., None] * content)
    allocation = torch.sigmoid(queries / keys * flow.conserved_incoming)
    return ((allocation / flow.incoming)[..., None] * (sink @ memory)).to(value.dtype)


def causal_flow_read(query: Tensor, key: Tensor, value: Tensor, chunk: int) -> Tensor:
    """The causal read: scores inside a chunk, the D x E memory for all keys before it."""
    sink, source, content = features(query, key, value)
    flow = causal_flows(promoted(query), promoted(key))
    queries, keys = query.shape[-2], key.shape[-2]
    log_total = flow.conserved_outgoing.logcumsumexp(-1)
    numbers = torch.arange(1, keys + 1).to(content)
    competition = numbers * (flow.conserved_outgoing - log_total).exp()
    content = competition[..., None] * content

    memory = source.new_zeros(*source.shape[:-2], source.shape[-1], content.shape[-1])
    reads = []
    for rows in chunks(max(queries, keys), chunk):
        inside = (sink[..., rows, :] @ source[..., rows, :].mT).tril()
        reads.append(inside @ content[..., rows, :] + sink[..., rows, :] @ memory)
        memory = memory + source[..., rows, :].mT @ content[..., rows, :]
    total = flow.incoming * counts(queries, keys, sink)
    gate = torch.sigmoid(flow.conserved_incoming) / total
    return (gate[..., None] * torch.cat(reads, dim=-2)).to(value.dtype)


def features(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """phi(q), phi(k) and v, in float32 where the inputs are in half precision."""
    return promoted(query).sigmoid(), promoted(key).sigmoid(), promoted(value)


def promoted(x: Tensor) -> Tensor:
    """A half-precision tensor in float32, any other as it is."""
    return x.float() if x.element_size() < 4 else x


def along(x: Float[Tensor, "*heads N D"], total: Tensor) -> Float[Tensor, "*heads N"]:
    """The inner product of every row of x with the row of `total` that belongs to it."""
    return (x * total).sum(-1)


def running_mean(x: Float[Tensor, "*heads M D"], rows: int) -> Float[Tensor, "*heads rows D"]:
    """Row i: the mean of the rows 0 ... i of x (of all rows, where x has fewer)."""
    last = torch.arange(rows, device=x.device).clamp(max=x.shape[-2] - 1)
    return x.cumsum(-2)[..., last, :] / counts(rows, x.shape[-2], x)[:, None]


def counts(rows: int, others: int, like: Tensor) -> Float[Tensor, " rows"]:
    """How many of the other side row i sees: min(i + 1, others)."""
    return torch.arange(1, rows + 1, device=like.device).clamp(max=others).to(like.dtype)


def empty_flow_state(sink: Tensor, content: Tensor) -> FlowState:
    """The state before the first token."""
    zero = torch.zeros_like(sink)
    log_total = sink.new_full(sink.shape[:-1], -torch.inf)
    memory = sink.new_zeros(*sink.shape[:-2], sink.shape[-1], content.shape[-1])
    return FlowState(0, zero, zero, zero, zero, log_total, memory)


def nothing(query: Tensor, value: Tensor) -> Tensor:
    """The read where there are no queries or no keys: zeros."""
    return query.new_zeros(*query.shape[:-1], value.shape[-1])
