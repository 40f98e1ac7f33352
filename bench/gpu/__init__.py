"""Everything that needs a GPU, prepared without one and done in minutes: ``python -m bench.gpu``.

    python -m bench.gpu --prepare DIR --arch sm_90        on any machine, beforehand
    python -m bench.gpu --use DIR --budget 330 --phases first --merge      on the GPU's

``--prepare`` fills DIR with all that the GPU's machine would have to fetch or compile: wheels,
every Triton kernel that the phases ask for, both extensions. ``--use`` unpacks it. The run is a row
of *phases*, in order of value, each in a process of its own that is killed when its share of the
budget is over and has written what it has by then; nothing that fails stops the rest. The result
file grows after every phase.

The folder: :mod:`.cli` the command line, :mod:`.plan` the phases and their shares, :mod:`.run` who
starts and kills them, :mod:`.record` the result file, :mod:`.prepare` and :mod:`.use` the prepared
folder, :mod:`.kernels` which kernels the phases ask for, :mod:`.phases` what each of them does.
What runs before ``--use`` has taken effect imports nothing but the standard library.
"""
