"""The parameters of a PyTorch model by the names they have in its files, where each expert has tensors of its own."""

# The names of an expert's three layers in Mixtral's files and in all others.
MIXTRAL, OTHERS = ("w1", "w3", "w2"), ("gate_proj", "up_proj", "down_proj")


class Part:
    """A part of a parameter, with what of a parameter the golden files need."""

    requires_grad = True

    def __init__(self, parameter, index):
        self.parameter, self.index = parameter, index

    @property
    def shape(self):
        return self.detach().shape

    @property
    def grad(self):
        return self.parameter.grad[self.index]

    def detach(self):
        return self.parameter.detach()[self.index]

    def copy_(self, values):
        self.detach().copy_(values)


def unfused(model, named):
    """Names and parameters, the fused kernels of experts split into those of each."""
    mixtral = model.config.model_type == "mixtral"
    gate, up, down = MIXTRAL if mixtral else OTHERS
    found = []
    for name, parameter in named:
        place, _, last = name.rpartition(".")
        place = place.replace(".mlp", ".block_sparse_moe") if mixtral else place
        if last == "gate_up_proj":
            half = parameter.shape[1] // 2
            for e in range(len(parameter)):
                found.append((f"{place}.{e}.{gate}.weight", Part(parameter, (e, slice(half)))))
                found.append((f"{place}.{e}.{up}.weight", Part(parameter, (e, slice(half, None)))))
        elif last == "down_proj" and place.endswith(".experts"):
            found += [(f"{place}.{e}.{down}.weight", Part(parameter, e)) for e in range(len(parameter))]
        else:
            found.append((f"{place}.{last}", parameter))
    return found


def with_odd_experts(model):
    """The model with experts of any size; the default of transformers 5 needs multiples of 4."""
    if hasattr(model.config, "num_experts_per_tok"):
        model.set_experts_implementation("eager")
    return model
