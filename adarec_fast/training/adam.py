"""torch's Adam, without the import of torch's compiler that its first call waits for."""

from __future__ import annotations

from inspect import unwrap

import torch


class Adam(torch.optim.Adam):
    """:class:`torch.optim.Adam`, for steps that ``torch.compile`` never sees.

    torch wraps these methods so that its compiler breaks graphs around them, and each wrapper
    imports the compiler at its first call: seconds of the start of a training and of each of its
    workers. What they wrap is all that a step needs.
    """

    add_param_group = unwrap(torch.optim.Adam.add_param_group)
    zero_grad = unwrap(torch.optim.Adam.zero_grad)
    state_dict = unwrap(torch.optim.Adam.state_dict)
    load_state_dict = unwrap(torch.optim.Adam.load_state_dict)
    # The decorator left out here also turns gradients off.
    step = torch.no_grad()(unwrap(torch.optim.Adam.step))
