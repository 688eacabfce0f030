import torch

from spoor.ranking.ranker.host import CrossLayer, Host, HostConfig


def test_a_cross_is_its_formula():
    layer = CrossLayer(3)
    x0, x = torch.randn(4, 3), torch.randn(4, 3)
    by_hand = torch.stack([x0[c] * (layer.linear.weight @ x[c] + layer.linear.bias) + x[c] for c in range(4)])
    torch.testing.assert_close(layer(x0, x), by_hand)


def test_one_logit_per_task_and_the_same_seed_gives_the_same_host():
    first, second = (Host(HostConfig(), inputs=5, tasks=3) for _ in range(2))
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first.initialise(7)
    assert torch.equal(torch.rand(1), expected)
    second.initialise(7)
    rows = torch.randn(6, 5)
    assert first.eval()(rows).shape == (6, 3)
    assert torch.equal(first(rows), second.eval()(rows))
    assert first(rows[:0]).shape == (0, 3)


def test_it_learns_a_product_that_no_sum_tells():
    host = Host(HostConfig(dropout=0.0, hidden=4), inputs=2, tasks=1)
    host.initialise(0)
    rows = torch.randn(512, 2, generator=torch.Generator().manual_seed(0))
    labels = (rows[:, :1] * rows[:, 1:] > 0).float()
    optimiser = torch.optim.Adam(host.parameters(), lr=0.02)
    for _ in range(200):
        optimiser.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(host(rows), labels).backward()
        optimiser.step()
    assert ((host(rows) > 0) == (labels > 0)).float().mean() > 0.95
