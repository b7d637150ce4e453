//! Replica dispatch against linear programs and enumeration, EPLB against its published example.

use agents::ids::{ExpertId, NodeId};
use agents::placement::{
    Dispatch, DispatchFault, EplbError, EplbShape, LoadError, Placement, PlacementError,
    certify_dispatch, dispatch, dispatch_tokens, eplb, tight_set_bound,
};
use agents::rng::stream;
use good_lp::{
    Expression, ProblemVariables, Solution as _, SolverModel as _, constraint, microlp, variable,
};
use proptest::prelude::*;

/// Copies on any nodes, with loads.
#[derive(Clone, Debug)]
struct Instance {
    nodes: usize,
    hosts: Vec<Vec<NodeId>>,
    loads: Vec<f64>,
}

impl Instance {
    /// Up to 9 nodes and 16 experts with up to 4 copies; a tenth of the loads are zero, the others
    /// spread over about two decades, every second instance in whole numbers.
    fn random(seed: u64) -> Self {
        let mut rng = stream(seed, "replica instance");
        let nodes = rng.random_range(1..10_usize);
        let experts = rng.random_range(1..17);
        let hosts = (0..experts).map(|_| {
            let mut free: Vec<NodeId> = (0..nodes).map(NodeId::from_index).collect();
            let copies = rng.random_range(1..=nodes.min(4));
            (0..copies).map(|_| free.swap_remove(rng.random_range(0..free.len()))).collect()
        });
        let hosts: Vec<Vec<NodeId>> = hosts.collect();
        let loads = (0..experts).map(|_| {
            let load = 100.0_f64.powf(rng.random()) * f64::from(!rng.random_bool(0.1));
            if seed.is_multiple_of(2) { load.round() } else { load }
        });
        Self { nodes, loads: loads.collect(), hosts }
    }

    fn placement(&self) -> Placement {
        Placement::new(self.nodes, &self.hosts).expect("hosts are distinct and in range")
    }

    fn dispatch(&self) -> Dispatch {
        dispatch(&self.placement(), &self.loads, None).expect("loads are amounts")
    }

    fn total(&self) -> f64 {
        self.loads.iter().sum()
    }

    /// The least possible sum of the `count` largest node loads, as a linear program: with
    /// s_g ≥ L_g − t and s_g ≥ 0, minimise count·t + Σ s_g. For one node it is min max L_g.
    fn least_sum_of_largest(&self, count: usize) -> f64 {
        let mut variables = ProblemVariables::new();
        let threshold = variables.add(variable());
        let above = variables.add_vector(variable().min(0.0), self.nodes);
        let mut node_loads = vec![Expression::default(); self.nodes];
        let mut served = Vec::new();
        for hosts in &self.hosts {
            let mut sum = Expression::default();
            for node in hosts {
                let share = variables.add(variable().min(0.0));
                node_loads[node.index()] += share;
                sum += share;
            }
            served.push(sum);
        }
        let sum_of_largest = count as f64 * threshold + above.iter().sum::<Expression>();
        let mut program = variables.minimise(sum_of_largest.clone()).using(microlp);
        for (sum, load) in served.into_iter().zip(&self.loads) {
            program = program.with(constraint::eq(sum, *load));
        }
        for (above, load) in above.iter().zip(node_loads) {
            program = program.with(constraint::geq(*above + threshold, load));
        }
        program.solve().expect("every load fits").eval(sum_of_largest)
    }
}

fn instance() -> impl Strategy<Value = Instance> {
    any::<u64>().prop_map(Instance::random)
}

pub(crate) fn nodes(ids: &[u32]) -> Vec<NodeId> {
    ids.iter().copied().map(NodeId).collect()
}

fn descending(loads: &[f64]) -> Vec<f64> {
    let mut sorted = loads.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    sorted
}

pub(crate) fn assert_close(a: f64, b: f64, scale: f64, what: &str) {
    assert!((a - b).abs() <= 1e-9 * scale, "{what}: {a} against {b}");
}

#[test]
fn the_largest_load_equals_the_linear_program_on_200_instances() {
    for seed in 0..200 {
        let instance = Instance::random(seed);
        let best = instance.least_sum_of_largest(1);
        let found = instance.dispatch().max_load();
        assert_close(found, best, best.max(1.0), &format!("instance {seed}"));
    }
}

/// The definition of least majorised, each k by its own linear program.
#[test]
fn the_sum_of_the_k_largest_loads_is_least_for_every_k() {
    for seed in 1000..1040 {
        let instance = Instance::random(seed);
        let loads = descending(&instance.dispatch().node_loads);
        for count in 1..=instance.nodes {
            let best = instance.least_sum_of_largest(count);
            let found = loads[..count].iter().sum();
            assert_close(found, best, best.max(1.0), &format!("instance {seed}, k = {count}"));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_tight_set_proves_every_dispatch_optimal(instance in instance()) {
        let placement = instance.placement();
        let split = instance.dispatch();
        let certificate = certify_dispatch(&placement, &instance.loads, &split).expect("valid");
        prop_assert!(certificate.relative_gap.abs() <= 1e-11, "{certificate:?}");
        prop_assert!(certificate.largest_gain <= 1e-10 * certificate.max_load, "{certificate:?}");
        let mean = instance.total() / instance.nodes as f64;
        prop_assert!((certificate.mean_load - mean).abs() <= 1e-12 * mean);
        if instance.total() > 0.0 {
            let reached: Vec<NodeId> = (0..instance.nodes)
                .map(NodeId::from_index)
                .filter(|node| {
                    split.tight.experts.iter().any(|e| placement.hosts(*e).contains(node))
                })
                .collect();
            prop_assert_eq!(&split.tight.nodes, &reached);
        }
    }

    #[test]
    fn any_set_of_experts_bounds_the_largest_load_from_below(
        instance in instance(),
        picks in proptest::collection::vec(any::<bool>(), 16),
    ) {
        let split = instance.dispatch();
        let mut set = split.tight.clone();
        set.experts = (0..instance.loads.len())
            .filter(|at| picks[*at])
            .map(ExpertId::from_index)
            .collect();
        let bound = tight_set_bound(&instance.placement(), &instance.loads, &set);
        prop_assert!(bound <= split.max_load() * (1.0 + 1e-11));
    }

    #[test]
    fn renaming_experts_and_nodes_renames_the_loads(instance in instance(), seed in any::<u64>()) {
        let mut rng = stream(seed, "renaming");
        let mut shuffled = |count: usize| {
            let mut left: Vec<usize> = (0..count).collect();
            (0..count).map(|_| left.swap_remove(rng.random_range(0..left.len()))).collect::<Vec<_>>()
        };
        let (experts, names) = (shuffled(instance.loads.len()), shuffled(instance.nodes));
        let rename = |node: &NodeId| NodeId::from_index(names[node.index()]);
        let renamed = Instance {
            nodes: instance.nodes,
            hosts: experts.iter().map(|e| instance.hosts[*e].iter().map(rename).collect()).collect(),
            loads: experts.iter().map(|e| instance.loads[*e]).collect(),
        };
        let (before, after) = (instance.dispatch(), renamed.dispatch());
        for (node, load) in before.node_loads.iter().enumerate() {
            let same = after.node_loads[names[node]];
            prop_assert!((load - same).abs() <= 1e-10 * before.max_load(), "{load} {same}");
        }
    }

    #[test]
    fn a_warm_start_from_other_loads_ends_at_the_same_node_loads(
        instance in instance(),
        factors in proptest::collection::vec(prop_oneof![Just(0.0), 0.01..100.0_f64], 16),
    ) {
        let placement = instance.placement();
        let earlier: Vec<f64> = instance.loads.iter().zip(&factors).map(|(w, f)| w * f).collect();
        let earlier = dispatch(&placement, &earlier, None).expect("amounts");
        let warm = dispatch(&placement, &instance.loads, Some(&earlier)).expect("amounts");
        let cold = instance.dispatch();
        certify_dispatch(&placement, &instance.loads, &warm).expect("valid");
        for (warm, cold) in warm.node_loads.iter().zip(&cold.node_loads) {
            prop_assert!((warm - cold).abs() <= 1e-10 * cold.max(1.0), "{warm} {cold}");
        }
    }

    #[test]
    fn whole_tokens_need_the_fractional_maximum_rounded_up(instance in instance()) {
        let placement = instance.placement();
        let (tokens, loads) = whole(&instance);
        let split = dispatch_tokens(&placement, &tokens).expect("amounts");
        for (expert, load) in (0..).map(ExpertId).zip(&tokens) {
            prop_assert_eq!(split.shares[placement.copies_of(expert)].iter().sum::<u32>(), *load);
        }
        let set_load: u64 = split.tight.experts.iter().map(|e| u64::from(tokens[e.index()])).sum();
        let least = set_load.div_ceil(split.tight.nodes.len().max(1) as u64);
        prop_assert_eq!(split.max_load(), least);
        let real = dispatch(&placement, &loads, None).expect("amounts");
        for (whole, real) in split.node_loads.iter().zip(&real.node_loads) {
            prop_assert!((*whole as f64 - real).abs() < 1.0 + 1e-9, "{whole} {real}");
        }
    }
}

fn whole(instance: &Instance) -> (Vec<u32>, Vec<f64>) {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most 100")]
    let tokens: Vec<u32> = instance.loads.iter().map(|load| load.round() as u32).collect();
    let loads = tokens.iter().map(|load| f64::from(*load)).collect();
    (tokens, loads)
}

/// Every whole dispatch of tiny instances: the least Σ L² and the least maximum.
#[test]
fn whole_tokens_are_dispatched_as_well_as_enumeration_finds() {
    fn visit(hosts: &[Vec<NodeId>], tokens: &[u32], loads: &[u64], best: &mut (u64, u64)) {
        let Some((first, rest)) = hosts.split_first() else {
            let squares = loads.iter().map(|load| load * load).sum();
            let most = loads.iter().copied().max().expect("a node");
            *best = (best.0.min(squares), best.1.min(most));
            return;
        };
        let (last, others) = first.split_last().expect("a copy");
        let (mut parts, tokens_left) = (vec![0_u32; others.len()], &tokens[1..]);
        loop {
            let given: u32 = parts.iter().sum();
            if given <= tokens[0] {
                let mut next = loads.to_vec();
                next[last.index()] += u64::from(tokens[0] - given);
                for (node, part) in others.iter().zip(&parts) {
                    next[node.index()] += u64::from(*part);
                }
                visit(rest, tokens_left, &next, best);
            }
            let Some(at) = parts.iter().position(|part| *part < tokens[0]) else { return };
            parts[at] += 1;
            parts[..at].fill(0);
        }
    }
    let mut compared = 0;
    for seed in 0..400 {
        let mut instance = Instance::random(seed);
        instance.hosts.truncate(4);
        instance.loads.truncate(4);
        instance.loads.iter_mut().for_each(|load| *load = load.sqrt().round().min(7.0));
        let (tokens, _) = whole(&instance);
        let mut best = (u64::MAX, u64::MAX);
        visit(&instance.hosts, &tokens, &vec![0; instance.nodes], &mut best);
        let split = dispatch_tokens(&instance.placement(), &tokens).expect("amounts");
        let squares = split.node_loads.iter().map(|load| load * load).sum::<u64>();
        assert_eq!((squares, split.max_load()), best, "instance {seed}: {instance:?}");
        compared += usize::from(instance.hosts.iter().any(|hosts| hosts.len() > 1));
    }
    assert!(compared > 100, "only {compared} instances leave a choice");
}

/// Larger than a linear program would like: the certificate is the oracle.
#[test]
fn layers_of_serving_size_are_certified_and_long_chains_level_out() {
    for seed in 0..40 {
        let mut rng = stream(seed, "serving size");
        let nodes = rng.random_range(2..19_usize) * 7 + 1;
        let hosts = (0..256).map(|_| {
            let copies = if rng.random_bool(0.6) { 1 } else { rng.random_range(2..12) };
            let first = rng.random_range(0..nodes);
            // The step is coprime to N, so the nodes are distinct.
            (0..copies).map(|at| NodeId::from_index((first + at * 7) % nodes)).collect()
        });
        let hosts: Vec<Vec<NodeId>> = hosts.collect();
        let loads: Vec<f64> = (0..256).map(|_| 1000.0_f64.powf(rng.random())).collect();
        let placement = Placement::new(nodes, &hosts).expect("steps are distinct");
        let split = dispatch(&placement, &loads, None).expect("amounts");
        let certificate = certify_dispatch(&placement, &loads, &split).expect("valid");
        assert!(certificate.relative_gap.abs() <= 1e-11, "layer {seed}: {certificate:?}");
        assert!(certificate.largest_gain <= 1e-10 * certificate.max_load, "layer {seed}");
    }
    // Everything arrives at one end of 3000 nodes in a row.
    let hosts: Vec<Vec<NodeId>> = (0..2999).map(|at| nodes(&[at, at + 1])).collect();
    let placement = Placement::new(3000, &hosts).expect("valid");
    let mut loads = vec![1.0; 2999];
    loads[0] = 2.0;
    let split = dispatch(&placement, &loads, None).expect("amounts");
    assert_close(split.max_load(), 1.0, 1.0, "every node carries one");
}

#[test]
fn hot_experts_and_degenerate_placements_come_out_as_reasoned() {
    let all = nodes(&[0, 1, 2, 3]);
    /// What it is, N, hosts, loads, expected node loads.
    type Case<'a> = (&'a str, usize, Vec<Vec<NodeId>>, &'a [f64], &'a [f64]);
    let cases: &[Case<'_>] = &[
        ("no load", 2, vec![nodes(&[0, 1])], &[0.0], &[0.0, 0.0]),
        ("no experts", 2, vec![], &[], &[0.0, 0.0]),
        ("one node", 1, vec![nodes(&[0]), nodes(&[0])], &[2.0, 3.0], &[5.0]),
        ("all on one node", 3, vec![nodes(&[1]), nodes(&[1])], &[2.0, 3.0], &[0.0, 5.0, 0.0]),
        ("one expert everywhere", 4, vec![all.clone()], &[8.0], &[2.0; 4]),
        // The level over nodes 0 and 1 fills to (6+1+2)/2, below the 9 of node 2 and the 5 of 3.
        (
            "one expert fills the valleys",
            4,
            vec![all, nodes(&[0]), nodes(&[1]), nodes(&[2]), nodes(&[3])],
            &[6.0, 1.0, 2.0, 9.0, 5.0],
            &[4.5, 4.5, 9.0, 5.0],
        ),
        // A chain: load must pass over every node in between to reach the last.
        (
            "a chain of pairs",
            4,
            vec![nodes(&[0]), nodes(&[0, 1]), nodes(&[1, 2]), nodes(&[2, 3])],
            &[1.0, 9.0, 9.0, 9.0],
            &[7.0; 4],
        ),
        // Experts 0 and 1 have only nodes 0 and 1; expert 2 must keep away from them.
        (
            "two levels",
            3,
            vec![nodes(&[0, 1]), nodes(&[0, 1]), nodes(&[1, 2])],
            &[5.0, 5.0, 2.0],
            &[5.0, 5.0, 2.0],
        ),
    ];
    for (what, nodes, hosts, loads, expected) in cases {
        let placement = Placement::new(*nodes, hosts).expect(what);
        let split = dispatch(&placement, loads, None).expect(what);
        for (found, expected) in split.node_loads.iter().zip(*expected) {
            assert_close(*found, *expected, 1.0, what);
        }
        let certificate = certify_dispatch(&placement, loads, &split).expect(what);
        assert_close(certificate.relative_gap, 0.0, 1.0, what);
    }
}

#[test]
fn loads_of_very_different_sizes_are_served_to_the_last_bit_that_counts() {
    let hosts = vec![nodes(&[0]), nodes(&[0, 1]), nodes(&[1, 2]), nodes(&[2])];
    let placement = Placement::new(3, &hosts).expect("valid");
    for loads in
        [[1e30, 1e-30, 1.0, 1e3], [5e-324, 1e-310, 2e-310, 0.0], [1e306, 1e306, 1e306, 0.0]]
    {
        let split = dispatch(&placement, &loads, None).expect("amounts");
        let certificate = certify_dispatch(&placement, &loads, &split).expect("valid");
        assert!(certificate.relative_gap.abs() < 1e-9, "{loads:?} {certificate:?}");
    }
}

#[test]
fn the_certificate_refuses_shares_that_lose_or_invent_work() {
    let hosts = vec![nodes(&[0, 1]), nodes(&[1])];
    let placement = Placement::new(2, &hosts).expect("valid");
    let loads = [4.0, 1.0];
    let split = dispatch(&placement, &loads, None).expect("amounts");
    let faults = |change: &dyn Fn(&mut Dispatch)| {
        let mut split = split.clone();
        change(&mut split);
        certify_dispatch(&placement, &loads, &split)
    };
    assert!(matches!(faults(&|s| s.shares[0] += 0.1), Err(DispatchFault::Sum { .. })));
    assert!(matches!(faults(&|s| s.shares[0] = -1.0), Err(DispatchFault::Share { .. })));
    assert!(matches!(faults(&|s| s.shares[0] = f64::NAN), Err(DispatchFault::Share { .. })));
    assert!(matches!(faults(&|s| s.node_loads[1] = 9.0), Err(DispatchFault::NodeLoad { .. })));
    assert!(matches!(faults(&|s| s.shares.truncate(2)), Err(DispatchFault::Sizes { .. })));
    // Valid but unbalanced: the gap and the gain say by how much.
    let uneven = faults(&|s| (s.shares, s.node_loads) = (vec![1.0, 3.0, 1.0], vec![1.0, 4.0]));
    let uneven = uneven.expect("valid");
    assert_eq!((uneven.max_load, uneven.lower_bound, uneven.largest_gain), (4.0, 2.5, 3.0));
    assert_eq!(uneven.relative_gap, 0.375);
}

#[test]
fn placements_and_loads_that_make_no_sense_are_refused_by_name() {
    let place = |count, hosts: &[&[u32]]| {
        let hosts: Vec<Vec<NodeId>> = hosts.iter().map(|ids| nodes(ids)).collect();
        Placement::new(count, &hosts)
    };
    let expert = ExpertId(1);
    assert_eq!(place(0, &[]), Err(PlacementError::NoNodes));
    assert_eq!(place(2, &[&[0], &[]]), Err(PlacementError::NoCopy { expert }));
    let node = NodeId(2);
    assert_eq!(
        place(2, &[&[0], &[1, 2]]),
        Err(PlacementError::NoSuchNode { expert, node, nodes: 2 })
    );
    let node = NodeId(1);
    assert_eq!(place(2, &[&[0], &[1, 0, 1]]), Err(PlacementError::Twice { expert, node }));

    let placement = place(2, &[&[0, 1], &[1]]).expect("valid");
    let refused = |loads: &[f64]| dispatch(&placement, loads, None).expect_err("refused");
    assert_eq!(refused(&[1.0]), LoadError::Experts { given: 1, experts: 2 });
    assert_eq!(refused(&[1.0, -2.0]), LoadError::Load { expert, load: -2.0 });
    assert!(matches!(refused(&[1.0, f64::NAN]), LoadError::Load { .. }));
    assert!(matches!(refused(&[1.0, f64::INFINITY]), LoadError::Load { .. }));
    assert_eq!(refused(&[f64::MAX, f64::MAX]), LoadError::Total);
    let other = place(1, &[&[0]]).expect("valid");
    let other = dispatch(&other, &[1.0], None).expect("amounts");
    let warm = dispatch(&placement, &[1.0, 1.0], Some(&other));
    assert_eq!(warm, Err(LoadError::Warm { given: 1, copies: 3 }));
}

/// The example of the README of github.com/deepseek-ai/EPLB (MIT): two layers of 12 experts, 16
/// replicas, 4 groups, 2 nodes with 8 GPUs together, and the printed `phy2log`.
#[test]
fn eplb_reproduces_its_published_example() {
    let shape = EplbShape { replicas: 16, groups: 4, servers: 2, gpus: 8 };
    let layers = [
        (
            [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
            [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
        ),
        (
            [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
            [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
        ),
    ];
    for (loads, published) in layers {
        let plan = eplb(&loads.map(f64::from), shape).expect("divides");
        assert_eq!(plan.slots, published.map(ExpertId));
        for (expert, count) in (0..).map(ExpertId).zip(&plan.copies) {
            let listed = published.iter().filter(|slot| **slot == expert.0).count();
            assert_eq!(*count as usize, listed);
        }
    }
}

/// The loads of the FlashLB pull request (vllm-ascend #3042): 8 devices with 2 slots each.
#[test]
fn optimal_dispatch_on_eplbs_own_placement_beats_its_equal_split() {
    let loads = [600.0, 560.0, 120.0, 120.0, 20.0, 10.0, 10.0, 10.0];
    let shape = EplbShape { replicas: 16, groups: 1, servers: 1, gpus: 8 };
    let plan = eplb(&loads, shape).expect("divides");
    let equal = plan.equal_split_loads(&loads);
    assert_close(equal.iter().copied().fold(0.0, f64::max), 232.0, 1.0, "equal split");
    assert_close(equal.iter().sum::<f64>() / 8.0, 181.25, 1.0, "mean");
    let split = dispatch(&plan.placement(), &loads, None).expect("amounts");
    assert_close(split.max_load(), 200.0, 1.0, "optimal dispatch");
}

/// Ties go to the first expert, as `torch.max` documents; two copies may share a GPU.
#[test]
fn eplb_keeps_the_ties_and_the_doubled_copies_of_the_original() {
    let shape = |replicas, gpus| EplbShape { replicas, groups: 1, servers: 1, gpus };
    let tied = eplb(&[1.0; 3], shape(4, 2)).expect("divides");
    assert_eq!(tied.copies, [2, 1, 1]);
    // Three copies of 33 and one of 1, heaviest first to the lighter GPU: 33 + 33 and 33 + 1.
    let loads = [99.0, 1.0];
    let doubled = eplb(&loads, shape(4, 2)).expect("divides");
    assert_eq!(doubled.slots, [0, 0, 0, 1].map(ExpertId));
    assert_eq!(doubled.equal_split_loads(&loads), [66.0, 34.0]);
    assert_eq!(doubled.placement().hosts(ExpertId(0)), nodes(&[0, 1]));
    let split = dispatch(&doubled.placement(), &loads, None).expect("amounts");
    assert_close(split.max_load(), 50.0, 1.0, "the same copies, better used");
}

/// The last expert would go to the first GPU, which carries 12 against 16, if that had a slot left.
#[test]
fn eplb_gives_a_full_gpu_nothing_more_though_it_is_the_lightest() {
    let shape = EplbShape { replicas: 6, groups: 1, servers: 1, gpus: 2 };
    let plan = eplb(&[10.0, 8.0, 8.0, 1.0, 1.0, 1.0], shape).expect("divides");
    assert_eq!(plan.slots, [0, 3, 4, 1, 2, 5].map(ExpertId));
}

#[test]
fn eplb_refuses_what_its_authors_exclude() {
    let shape = EplbShape { replicas: 16, groups: 4, servers: 2, gpus: 8 };
    let refused = |experts: usize, shape| eplb(&vec![1.0; experts], shape).expect_err("refused");
    let division = |what, dividend, divisor| EplbError::Division { what, dividend, divisor };
    assert_eq!(refused(13, shape), division("experts over groups", 13, 4));
    assert_eq!(refused(12, EplbShape { gpus: 7, ..shape }), division("GPUs over servers", 7, 2));
    let odd = EplbShape { replicas: 17, ..shape };
    assert_eq!(refused(12, odd), division("replicas over GPUs", 17, 8));
    assert_eq!(refused(20, shape), EplbError::Replicas { replicas: 16, experts: 20 });
    // Groups that do not divide over the servers are ignored: the global policy.
    let global = EplbShape { groups: 3, ..shape };
    assert_eq!(eplb(&[1.0; 13], global).expect("divides").slots.len(), 16);
}
