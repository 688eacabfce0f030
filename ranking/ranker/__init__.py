"""One ranker: training, measurement and serving.

host.py and fusion.py are its networks; rows.py makes their batches; train.py trains them; tuned.py is the ranker and
its file format; serving.py scores and recommends online. finetune.py runs `spoor finetune`, measure.py computes its
metrics; lift.py computes the table of `spoor lift` and of the demo.
"""
