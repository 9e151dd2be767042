"""Numbers that are not numbers: where the network returned them, and what to do about it."""

from jaxtyping import Float
from torch import Tensor

from unmask.decode.canvas import Canvas, Positions
from unmask.errors import NumericsError


def check_numbers(confidence_M: Float[Tensor, " M"], canvas: Canvas, places: Positions, step: int) -> None:
    """Raise NumericsError for the first place whose confidence is NaN, before anything is committed."""
    bad = confidence_M.isnan()
    if bool(bad.any()):
        row, column = int(places.rows_M[bad][0]), int(places.columns_M[bad][0])
        raise NumericsError(
            f"the network returned logits that are not numbers (NaN) in step {step + 1}, row {row}, position "
            f"{column - int(canvas.start_B[row])}; the weights are damaged or overflow in this precision: "
            "load the checkpoint again, or in float32 with `--dtype float32`"
        )
