"""The states between the chunks of linear attention, forward and backward: one pass each.

The equation. Cut N tokens into chunks of C. With T the sum of log a over a chunk and z_s its sum
over the tokens behind s in the chunk, the state S (D x E) at the end of a chunk follows from the
state at its start, and the gradient the other way round, with c_t the sum of log a up to t:

    S_end     = diag(e^T) S_start + sum_s (e^{z_s} k_s) v_s^T
    dS_start  = diag(e^T) dS_end  + scale sum_t (e^{c_t} q_t) g_t^T

Here dS_end is dL/dS at the end of the chunk, as all later tokens and the final state send it back,
and g_t is the gradient that arrives at o_t. Every exponent is a sum of numbers that are at most 0,
never a difference, so nothing overflows and nothing cancels, even where log a is -infinity.

The picture. Rows of S are key channels, columns value channels. A tile of S needs the same tile of
no other state: D x E is cut into tiles, one program each, and each walks along the chunks.

    chunk     0        1        2        3
    S tile    S_0  ->  S_1  ->  S_2  ->  S_3  ->  final state       forward
    dS tile      <-  dS_1   <-  dS_2  <-  dS_3  <-  its gradient    backward

What one program does. It holds a tile of S in `arithmetic` (float32) for the whole sequence,
writes it down at the start of each chunk and folds the chunk in with one product. Backward writes
down dS at the end of each chunk. All chunks can then be read in parallel.

What is written down has the dtype of the input: in float16 and bfloat16 the product that reads it
takes operands of that dtype, so a float32 state would be rounded to the same bits one moment later
and cost twice the bytes. The running tile itself is never rounded.

What it moves: with b bytes a number and R tiles in a row of D, b N (D + R E) or less for the keys
and values, and b D E N / C for the states; what it computes: 2 D E operations a token.

`log_decay` has a row for each token: D numbers, one number, or there is none (a = 1).
"""

import torch
import triton
import triton.language as tl
from attnlib.kernels.launch import on_device_of
from attnlib.kernels.tile_choice import tile_for
from attnlib.kernels.tiles import arithmetic_of, head_at, padded, product
from torch import Tensor


@triton.jit
def load_part(ptr, start, row_step, present, first_column, width: tl.constexpr, part: tl.constexpr):
    """Columns first_column, first_column + 1, ... of rows start, start + 1, ...: zero outside."""
    rows = tl.arange(0, present.shape[0])[:, None]
    columns = first_column + tl.arange(0, part)[None, :]
    inside = present[:, None]
    if width % part != 0:
        inside = inside & (columns < width)
    address = ptr + tl.cast(start, tl.int64) * row_step + (rows * row_step + columns)
    return tl.load(address, mask=inside, other=0.0)


@triton.jit
def store_part(ptr, start, tile, present, first_column, width: tl.constexpr, part: tl.constexpr):
    """Write a tile to these columns of rows of `width` numbers that lie one after the other."""
    rows = tl.arange(0, present.shape[0])[:, None]
    columns = first_column + tl.arange(0, part)[None, :]
    inside = present[:, None]
    if width % part != 0:
        inside = inside & (columns < width)
    address = ptr + tl.cast(start, tl.int64) * width + (rows * width + columns)
    tl.store(address, tile.to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def load_behind(
    ptr,
    start,
    row_step,
    count,
    first_column,
    width: tl.constexpr,
    part: tl.constexpr,
    rows: tl.constexpr,
):
    """Log decays of the tokens start + 1, ... of a chunk, each in the row of the token before.

    The last row is zero. Summed from the end, row s is z_s: taking c_s from T instead would cancel
    where a token forgets all and the next ones forget little.
    """
    behind = 1 + tl.arange(0, rows)
    present = (behind < rows) & (start + behind < count)
    return load_part(ptr, start + 1, row_step, present, first_column, width, part)


@triton.jit
def load_log_decay(ptr, start, step, present, arithmetic: tl.constexpr):
    """log a of the tokens of a chunk, (C,)."""
    tokens = start + tl.arange(0, present.shape[0])
    return tl.load(ptr + tokens.to(tl.int64) * step, mask=present, other=0.0).to(arithmetic)


@triton.jit
def fade(log_decay):
    """e^{L_ts} as a C x C table, from log a (C,): one where t <= s."""
    t = tl.arange(0, log_decay.shape[0])[:, None]
    s = tl.arange(0, log_decay.shape[0])[None, :]
    return tl.exp(tl.cumsum(tl.where(s < t, log_decay[:, None], 0.0), 0))


@triton.constexpr_function
def decay_part(decay_width, key_part):
    """How many columns of log_decay a tile of key channels needs: one where there is only one."""
    return 1 if decay_width == 1 else key_part


@triton.jit
def my_chunk(token_count, heads, chunk_size: tl.constexpr, parts: tl.constexpr):
    """Where the chunk of this program starts, its part of the columns, batch entry and head."""
    chunk_count = tl.cdiv(token_count, chunk_size)
    part, rest = tl.program_id(0) % parts, tl.program_id(0) // parts
    chunk, batch_and_head = rest % chunk_count, rest // chunk_count
    return chunk * chunk_size, part, batch_and_head // heads, batch_and_head % heads


@triton.jit
def state_row(batch_and_head, token_count, start, chunk_size: tl.constexpr, width: tl.constexpr):
    """The row of the table of all states at which the state of the chunk at `start` begins."""
    chunk_count = tl.cdiv(token_count, chunk_size)
    return (batch_and_head * chunk_count + start // chunk_size) * width


@triton.jit
def my_tile(heads, width: tl.constexpr, value_width: tl.constexpr, key_part, value_part):
    """First key channel and first value channel of my tile of the state, batch entry, head."""
    value_parts = tl.cdiv(value_width, value_part)
    parts = tl.cdiv(width, key_part) * value_parts
    tile, batch_and_head = tl.program_id(0) % parts, tl.program_id(0) // parts
    first_key = tile // value_parts * key_part
    first_value = tile % value_parts * value_part
    return first_key, first_value, batch_and_head // heads, batch_and_head % heads


@triton.jit
def state_kernel(
    key_ptr,
    value_ptr,
    log_decay_ptr,
    initial_state_ptr,
    states_ptr,
    final_state_ptr,
    key_steps,
    value_steps,
    decay_steps,
    counts,
    width: tl.constexpr,
    value_width: tl.constexpr,
    decay_width: tl.constexpr,
    arithmetic: tl.constexpr,
    chunk_size: tl.constexpr,
    key_part: tl.constexpr,
    value_part: tl.constexpr,
):
    token_count, heads = counts
    chunk_count = tl.cdiv(token_count, chunk_size)
    columns: tl.constexpr = decay_part(decay_width, key_part)
    first_key, first_value, batch, head = my_tile(heads, width, value_width, key_part, value_part)
    first_decay = first_key if decay_width > 1 else 0
    batch_and_head = (batch * heads + head).to(tl.int64)
    key_ptr = head_at(key_ptr, key_steps, batch, head)
    value_ptr = head_at(value_ptr, value_steps, batch, head)
    if log_decay_ptr is not None:
        log_decay_ptr = head_at(log_decay_ptr, decay_steps, batch, head)
    channels = first_key + tl.arange(0, key_part) < width
    row = batch_and_head * width + first_key  # of the state, among the rows of all heads

    state = tl.zeros([key_part, value_part], arithmetic)
    if initial_state_ptr is not None:
        state += load_part(
            initial_state_ptr, row, value_width, channels, first_value, value_width, value_part
        )
    for chunk in range(0, chunk_count):
        start = chunk * chunk_size
        place = state_row(batch_and_head, token_count, start, chunk_size, width) + first_key
        store_part(states_ptr, place, state, channels, first_value, value_width, value_part)

        present = start + tl.arange(0, chunk_size) < token_count
        keys = load_part(key_ptr, start, key_steps[2], present, first_key, width, key_part)
        values = load_part(
            value_ptr, start, value_steps[2], present, first_value, value_width, value_part
        )
        if log_decay_ptr is not None:
            step = decay_steps[2]
            log_decay = load_part(
                log_decay_ptr, start, step, present, first_decay, decay_width, columns
            )
            behind = load_behind(
                log_decay_ptr,
                start,
                step,
                token_count,
                first_decay,
                decay_width,
                columns,
                chunk_size,
            )
            state *= tl.exp(tl.sum(log_decay.to(arithmetic), 0))[:, None]
            to_the_end = tl.exp(tl.cumsum(behind.to(arithmetic), 0, reverse=True))
            keys = (keys.to(arithmetic) * to_the_end).to(values.dtype)
        state += product(tl.trans(keys), values)
    store_part(final_state_ptr, row, state, channels, first_value, value_width, value_part)


@triton.jit
def state_gradient_kernel(
    query_ptr,
    grad_read_ptr,
    log_decay_ptr,
    grad_final_state_ptr,
    grad_states_ptr,
    grad_initial_state_ptr,
    query_steps,
    decay_steps,
    counts,
    scale: tl.constexpr,
    width: tl.constexpr,
    value_width: tl.constexpr,
    decay_width: tl.constexpr,
    arithmetic: tl.constexpr,
    chunk_size: tl.constexpr,
    key_part: tl.constexpr,
    value_part: tl.constexpr,
):
    token_count, heads = counts
    chunk_count = tl.cdiv(token_count, chunk_size)
    columns: tl.constexpr = decay_part(decay_width, key_part)
    first_key, first_value, batch, head = my_tile(heads, width, value_width, key_part, value_part)
    first_decay = first_key if decay_width > 1 else 0
    batch_and_head = (batch * heads + head).to(tl.int64)
    query_ptr = head_at(query_ptr, query_steps, batch, head)
    grad_read_ptr += batch_and_head * token_count * value_width
    if log_decay_ptr is not None:
        log_decay_ptr = head_at(log_decay_ptr, decay_steps, batch, head)
    channels = first_key + tl.arange(0, key_part) < width
    row = batch_and_head * width + first_key

    grad_state = tl.zeros([key_part, value_part], arithmetic)
    if grad_final_state_ptr is not None:
        grad_state += load_part(
            grad_final_state_ptr, row, value_width, channels, first_value, value_width, value_part
        )
    for step in range(0, chunk_count):
        chunk = chunk_count - 1 - step
        start = chunk * chunk_size
        place = state_row(batch_and_head, token_count, start, chunk_size, width) + first_key
        store_part(
            grad_states_ptr, place, grad_state, channels, first_value, value_width, value_part
        )

        present = start + tl.arange(0, chunk_size) < token_count
        queries = load_part(query_ptr, start, query_steps[2], present, first_key, width, key_part)
        grad_read = load_part(
            grad_read_ptr, start, value_width, present, first_value, value_width, value_part
        )
        if log_decay_ptr is not None:
            log_decay = load_part(
                log_decay_ptr, start, decay_steps[2], present, first_decay, decay_width, columns
            ).to(arithmetic)
            grad_state *= tl.exp(tl.sum(log_decay, 0))[:, None]
            from_the_start = tl.exp(tl.cumsum(log_decay, 0))
            queries = (queries.to(arithmetic) * from_the_start).to(grad_read.dtype)
        grad_state += product(tl.trans(queries), grad_read) * scale
    if grad_initial_state_ptr is not None:
        store_part(
            grad_initial_state_ptr,
            row,
            grad_state,
            channels,
            first_value,
            value_width,
            value_part,
        )


def states_of(key, value, log_decay, initial_state) -> tuple[Tensor, Tensor]:
    """The state at the start of each chunk, (B H, chunks, D, E), and after the last token."""
    choices = choices_for("states", key, value)
    width, value_width = key.shape[-1], value.shape[-1]
    states = new_states(key, value, choices)
    final_state = torch.empty(
        (*key.shape[:2], width, value_width), dtype=arithmetic_of(key.dtype), device=key.device
    )
    with on_device_of(key):
        state_kernel[(programs(key, value, choices),)](
            *(key, value, log_decay, initial_state, states, final_state),
            key_steps=key.stride()[:3],
            value_steps=value.stride()[:3],
            decay_width=1 if log_decay is None else log_decay.shape[3],
            **problem(key, value, log_decay),
            **choices,
        )
    return states, final_state


def state_gradients_of(
    grad_read, grad_final_state, query, value, log_decay, has_initial_state, scale
) -> tuple[Tensor, Tensor | None]:
    """The gradient of the state at the end of each chunk, and of the initial state."""
    choices = choices_for("states", query, value)
    grad_states = new_states(query, value, choices)
    grad_initial_state = None
    if has_initial_state:
        grad_initial_state = torch.empty(
            (*query.shape[:2], query.shape[-1], value.shape[-1]),
            dtype=arithmetic_of(query.dtype),
            device=query.device,
        )
    with on_device_of(query):
        state_gradient_kernel[(programs(query, value, choices),)](
            *(query, grad_read, log_decay, grad_final_state, grad_states, grad_initial_state),
            query_steps=query.stride()[:3],
            scale=scale,
            decay_width=1 if log_decay is None else log_decay.shape[3],
            **problem(query, value, log_decay),
            **choices,
        )
    return grad_states, grad_initial_state


def problem(key: Tensor, value: Tensor, log_decay: Tensor | None) -> dict:
    """What every kernel of linear attention is told of the layout: B, H, N, D or E and the decay.

    log_decay is (B, H, N, 1), (B, H, N, D) or None.
    """
    return {
        "decay_steps": None if log_decay is None else log_decay.stride()[:3],
        "counts": (key.shape[2], key.shape[1]),
        "width": key.shape[3],
        "value_width": value.shape[3],
    }


def new_states(key: Tensor, value: Tensor, choices: dict) -> Tensor:
    """Room for a state for each chunk of each head, in the dtype of the input."""
    batch, heads, tokens, width = key.shape
    chunks = triton.cdiv(tokens, choices["chunk_size"])
    shape = (batch * heads, chunks, width, value.shape[-1])
    return torch.empty(shape, dtype=key.dtype, device=key.device)


def chunks_of(query: Tensor, choices: dict) -> int:
    """How many chunks there are in all heads."""
    return query.shape[0] * query.shape[1] * triton.cdiv(query.shape[2], choices["chunk_size"])


def programs(key: Tensor, value: Tensor, choices: dict) -> int:
    """One for each tile of the state of each head."""
    batch, heads, _, width = key.shape
    key_parts = triton.cdiv(width, choices["key_part"])
    return batch * heads * key_parts * triton.cdiv(value.shape[-1], choices["value_part"])


def choices_for(kernel: str, key: Tensor, value: Tensor) -> dict:
    """The compile-time choices of one of the kernels for these tensors, on their device."""
    return renamed(tile_for(TILES, kernel, key, value), key.shape[-1], value.shape[-1])


def renamed(choices: dict, width: int, value_width: int) -> dict:
    """A tile of `tile_choice` in the words of linear attention: a chunk, and parts of its columns.

    A chunk is the query block and the key block at once; what is left to choose is how many columns
    of the keys, the values and the state a program holds.
    """
    part = choices.pop("key_block_size")
    return {
        "chunk_size": choices.pop("query_block_size"),
        "key_part": min(part, padded(width)),
        "value_part": min(part, padded(value_width)),
        **choices,
    }


# As `tile_choice` reads them, with a chunk for a query block and a part for a key block. States lie
# at the starts of chunks, so a dtype has one chunk in all kernels, on every chip. Parts are the
# largest tried that spill no registers on Hopper (232,448) and on Ampere (101,376).
TILES = {
    ("states", 2): [(101_376, 256, 64, 64, 8, 3)],
    ("read", 2): [(232_448, 256, 64, 128, 8, 2), (101_376, 256, 64, 64, 4, 2)],
    ("query and key gradients", 2): [(232_448, 256, 64, 64, 8, 2), (101_376, 256, 64, 16, 8, 2)],
    ("value gradient", 2): [(232_448, 256, 64, 128, 8, 2), (101_376, 256, 64, 64, 4, 2)],
    ("gated scores", 2): [(101_376, 256, 64, 64, 8, 1)],
    ("gated read", 2): [(232_448, 256, 64, 128, 8, 2), (101_376, 256, 64, 64, 4, 2)],
    ("gated gradients", 2): [(232_448, 256, 64, 32, 8, 1), (101_376, 256, 64, 16, 8, 1)],
    ("gated value gradient", 2): [(232_448, 256, 64, 128, 8, 2), (101_376, 256, 64, 64, 8, 2)],
}
for wide in (4, 8):  # bytes a number; full precision is multiplied number by number, in registers
    TILES |= {(kernel, wide): [(101_376, 256, 32, 32, 8, 1)] for kernel, _ in tuple(TILES)}
