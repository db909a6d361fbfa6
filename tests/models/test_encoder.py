from dataclasses import replace

import pytest
import torch

from tracelib.models.encoder import EncoderOutput

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def encoder(make_encoder):
    return make_encoder()


@pytest.fixture(scope="module")
def batch(processor, answered):
    return processor(answered)


def encode(encoder, inputs):
    with torch.no_grad():
        return encoder(inputs)


def close(a, b, tolerance=TOLERANCE):
    return (a - b).abs().max() < tolerance * b.abs().max()


@pytest.mark.parametrize("read_offset", [-1, 0])
def test_reads_the_states_of_the_backbones_own_forward(
    make_encoder, tiny_model, processor, answered, read_offset
):
    """One row at a time, without adapter and with the library's own positions."""
    encoder = make_encoder(lora=None, read_offset=read_offset)
    model = tiny_model()
    model.load_state_dict(encoder.model.state_dict())  # the same embedding token
    output = encode(encoder, processor(answered))
    targets = []
    for row, turn in enumerate(answered):
        inputs = processor([turn])
        states = model(
            input_ids=inputs.input_ids,
            attention_mask=inputs.attention_mask,
            mm_token_type_ids=inputs.mm_token_type_ids,
            pixel_values=inputs.pixel_values,
            image_grid_thw=inputs.image_grid_thw,
            output_hidden_states=True,
        ).hidden_states[-1][0]
        start = int((inputs.labels[0] == -100).sum())
        assert inputs.input_ids[0, -1] == processor.emb_token_id
        assert close(output.embedding[row], states[-1 + read_offset])
        assert close(output.prompt_state[row], states[start - 1])
        if read_offset == 0:
            assert not close(output.embedding[row], states[-2], 1e-2)
        targets += inputs.input_ids[0, start:].tolist()
        logits = model.lm_head(states[start - 1 : -1])
        assert close(output.lm_logits[len(targets) - len(logits) : len(targets)], logits)
    assert output.lm_targets.tolist() == targets


def test_pictures_may_come_as_bytes(encoder, processor, answered):
    packed = processor.pad(processor.tokenize(answered))
    assert packed.pixel_values.dtype == torch.uint8
    expected = encode(encoder, processor(answered)).embedding
    assert torch.equal(encode(encoder, packed).embedding, expected)


def test_an_embedding_does_not_depend_on_its_batch_or_padding(encoder, processor, answered, batch):
    together = encode(encoder, batch)
    left = encode(encoder, processor(answered, "left"))
    backwards = encode(encoder, processor(answered[::-1]))
    for row, turn in enumerate(answered):
        alone = encode(encoder, processor([turn]))
        for output, place in ((together, row), (left, row), (backwards, len(answered) - 1 - row)):
            assert close(output.embedding[place], alone.embedding[0])
            assert close(output.prompt_state[place], alone.prompt_state[0])
    differences = (together.embedding[:, None] - together.embedding).abs().amax(-1)
    assert (differences + torch.eye(len(answered))).min() > 100 * TOLERANCE  # the control


@pytest.mark.parametrize("read_offset", [-1, 0])
def test_only_tokens_up_to_the_read_position_count(make_encoder, processor, answered, read_offset):
    encoder = make_encoder(read_offset=read_offset)
    turn = answered[2]
    inputs = processor([turn])
    expected = encode(encoder, inputs).embedding
    tail = processor([replace(turn, end=turn.end + " and so on")])
    assert tail.input_ids.shape[1] > inputs.input_ids.shape[1]
    assert close(encode(encoder, tail).embedding, expected)
    for place in range(1, inputs.input_ids.shape[1] - 1):
        if inputs.mm_token_type_ids[0, place - 1 : place + 2].any():
            continue  # other vision tokens would change what the pictures are
        changed = replace(inputs, input_ids=inputs.input_ids.clone())
        changed.input_ids[0, place] += 1
        assert not close(encode(encoder, changed).embedding, expected, 1e-4), place


def test_the_picture_counts(encoder, processor, answered):
    turn = next(t for t in answered if t.images)
    inverted = replace(turn, images=[turn.images[0].point(lambda value: 255 - value)])
    a, b = (encode(encoder, processor([t])).embedding for t in (turn, inverted))
    assert not close(a, b, 1e-3)


def test_a_missing_embedding_token_is_refused(encoder, processor, answered):
    turns = [answered[0], replace(answered[1], end="")]
    with pytest.raises(ValueError, match=r"rows \[1\] of 2 hold no embedding token"):
        encoder(processor(turns))


def test_an_embedding_token_in_the_prompt_does_not_count(encoder, processor, answered):
    inputs = processor([answered[1]])
    inputs.input_ids[0, 3] = processor.emb_token_id
    assert inputs.labels[0, 3] == -100
    output = encode(encoder, inputs)
    hidden = encoder.run_backbone(inputs, encoder.compute_positions(inputs)[0])
    assert close(output.embedding[0], hidden[0, -2])


def test_prompt_tokens_get_no_gradient_of_the_language_model_loss(
    make_encoder, processor, answered
):
    encoder = make_encoder()
    inputs = processor(answered)
    kept = []

    def keep(module, args, output):
        output.last_hidden_state.retain_grad()
        kept.append(output.last_hidden_state)

    encoder.model.get_base_model().model.register_forward_hook(keep)
    output = encoder(inputs)
    torch.nn.functional.cross_entropy(output.lm_logits, output.lm_targets).backward()
    has_gradient = kept[0].grad.abs().amax(-1) > 0
    predicts_a_target = inputs.labels[:, 1:] != -100
    assert torch.equal(has_gradient[:, :-1], predicts_a_target)
    assert not has_gradient[:, -1].any()


def test_a_batch_without_pictures_gives_the_projector_a_zero_gradient(
    make_encoder, processor, answered
):
    encoder = make_encoder().train()
    encoder(processor([t for t in answered if not t.images])).embedding.sum().backward()
    gradients = {name: p.grad for name, p in encoder.named_parameters() if ".merger." in name}
    assert gradients
    assert all(g is not None and not g.any() for g in gradients.values())


def test_every_trained_weight_gets_a_gradient(make_encoder, batch):
    encoder = make_encoder().train()
    output = encoder(batch)
    (output.embedding.sum() + output.lm_logits.sum()).backward()
    for name, parameter in encoder.named_parameters():
        assert not parameter.requires_grad or parameter.grad.abs().max() > 0, name


def test_gradient_checkpointing_changes_no_gradient(make_encoder, batch):
    gradients = []
    for gradient_checkpointing in (False, True):
        encoder = make_encoder(gradient_checkpointing=gradient_checkpointing).train()
        encoder(batch).embedding.square().sum().backward()
        trained = [p for p in encoder.parameters() if p.requires_grad]
        gradients.append(torch.cat([p.grad.flatten() for p in trained]))
    assert close(gradients[1], gradients[0])


def test_merged_lora_gives_the_same_embeddings(make_encoder, batch):
    encoder = make_encoder()
    row = next(p for name, p in encoder.named_parameters() if "trainable_tokens" in name)
    row.data.normal_(std=2)
    unmerged = encode(encoder, batch)
    encoder.prepare_inference()
    assert not any("lora" in name for name, _ in encoder.named_parameters())
    merged = encode(encoder, batch)
    assert close(merged.embedding, unmerged.embedding, 1e-4)
    assert close(merged.lm_logits, unmerged.lm_logits, 1e-4)
    plain = make_encoder(lora=None)  # the control: the adapter did something
    assert not close(encode(plain, batch).embedding, merged.embedding, 1e-1)


def test_joined_chunks_are_the_batch(encoder, processor, answered, batch):
    chunks = [encode(encoder, processor(answered[i : i + 3])) for i in range(0, len(answered), 3)]
    joined, whole = EncoderOutput.join(chunks), encode(encoder, batch)
    assert close(joined.embedding, whole.embedding)
    assert close(joined.lm_logits, whole.lm_logits)
    assert torch.equal(joined.lm_targets, whole.lm_targets)


def test_sizes_and_dtype(make_encoder, batch):
    encoder = make_encoder(dtype="bfloat16")
    assert (encoder.hidden_size, encoder.dtype) == (32, torch.bfloat16)
    assert encode(
        encoder, replace(batch, pixel_values=batch.pixel_values.bfloat16())
    ).embedding.shape == (7, 32)
