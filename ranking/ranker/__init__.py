"""One ranker, trained, measured and served.

host.py and fusion.py are its networks; rows.py makes their batches; train.py trains them; tuned.py is the ranker and
its file; serving.py scores and recommends online. finetune.py runs `spoor finetune` and measure.py makes its tables;
lift.py makes the table of `spoor lift` and of the demo.
"""
