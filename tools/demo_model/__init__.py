"""The laboratory of the demo checkpoint: how it is trained, packed, put together and judged.

``python tools/demo_model --help`` lists the stages; ``docs/demo_model.md`` tells what they are for.  Nothing here is
part of the node pack.
"""
