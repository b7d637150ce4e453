//! The exact split of whole tokens over copies.

use super::{LoadError, Placement, TightSet, dispatch};
use crate::ids::{ExpertId, NodeId};

/// A split of each expert's tokens over its copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenDispatch {
    /// Tokens of every copy, in the order of [`Placement::copies_of`].
    pub shares: Vec<u32>,
    /// Tokens on each node, `[N]`.
    pub node_loads: Vec<u64>,
    /// The set A of the fractional optimum: some node carries ⌈w(A) / |nodes(A)|⌉ tokens.
    pub tight: TightSet,
}

impl TokenDispatch {
    /// The largest number of tokens on a node.
    #[must_use]
    pub fn max_load(&self) -> u64 {
        self.node_loads.iter().copied().max().unwrap_or(0)
    }
}

/// Splits whole tokens over the copies so that Σ_g L_g² over whole dispatches is least. The
/// largest node load is then ⌈largest load of the fractional optimum⌉, the least possible: a flow
/// with whole capacities has a whole solution.
///
/// The fractional [`dispatch`] is rounded, then tokens move along paths of shared experts from a
/// node to one with at least two fewer. When no such path is left the sum is least, for a better
/// dispatch would differ by such paths (Frank and Murota, *Math. Program.* 195, 2022). Every
/// path lowers the whole number Σ L_g², so the search ends.
///
/// # Errors
/// Not one load an expert.
pub fn dispatch_tokens(placement: &Placement, loads: &[u32]) -> Result<TokenDispatch, LoadError> {
    let real: Vec<f64> = loads.iter().map(|load| f64::from(*load)).collect();
    let real = dispatch(placement, &real, None)?;
    let mut shares = vec![0; placement.copies()];
    let mut node_loads = vec![0; placement.nodes()];
    for (expert, load) in (0..).map(ExpertId).zip(loads) {
        let copies = placement.copies_of(expert);
        round_to_sum(&real.shares[copies.clone()], *load, &mut shares[copies.clone()]);
        for copy in copies {
            node_loads[placement.host[copy].index()] += u64::from(shares[copy]);
        }
    }
    let mut tokens = TokenDispatch { shares, node_loads, tight: real.tight };
    let mut paths = Paths::new(placement);
    while paths.shorten_longest(&mut tokens) {}
    Ok(tokens)
}

/// Rounds shares that add up to `sum` down, then gives what is missing to the largest remainders.
fn round_to_sum(shares: &[f64], sum: u32, whole: &mut [u32]) {
    let mut missing = sum;
    for (share, whole) in shares.iter().zip(&mut *whole) {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "0 ≤ share ≤ sum"
        )]
        let floor = share.floor() as u32;
        *whole = floor.min(missing);
        missing -= *whole;
    }
    if missing > 0 {
        let remainder = |at: &usize| shares[*at] - f64::from(whole[*at]);
        let mut order: Vec<usize> = (0..shares.len()).collect();
        order.sort_by(|a, b| remainder(b).total_cmp(&remainder(a)));
        // Rounding down loses less than one a copy, so one round is enough; the cycle is a bound.
        for at in order.into_iter().cycle().take(missing as usize) {
            whole[at] += 1;
        }
    }
}

/// Breadth-first search over nodes: a node reaches the hosts of every expert it serves.
struct Paths<'a> {
    placement: &'a Placement,
    /// The search that last saw a node or an expert.
    node_seen: Vec<u32>,
    expert_seen: Vec<u32>,
    search: u32,
    /// The copies that a node was reached by: the one that gives and the one that takes.
    reached_by: Vec<(usize, usize)>,
    queue: Vec<NodeId>,
}

impl<'a> Paths<'a> {
    fn new(placement: &'a Placement) -> Self {
        Self {
            placement,
            node_seen: vec![0; placement.nodes()],
            expert_seen: vec![0; placement.experts()],
            search: 0,
            reached_by: vec![(0, 0); placement.nodes()],
            queue: Vec::with_capacity(placement.nodes()),
        }
    }

    /// Moves tokens from the most loaded node that reaches one with at least two fewer, to the
    /// least loaded it reaches. False when there is none.
    fn shorten_longest(&mut self, tokens: &mut TokenDispatch) -> bool {
        let mut sources: Vec<NodeId> =
            (0..self.placement.nodes()).map(NodeId::from_index).collect();
        sources.retain(|node| !self.placement.shared_on(*node).is_empty());
        sources.sort_by_key(|node| std::cmp::Reverse(tokens.node_loads[node.index()]));
        for source in sources {
            self.search_from(source, &tokens.shares);
            let load = |node: &NodeId| tokens.node_loads[node.index()];
            let target = *self.queue.iter().min_by_key(|node| load(node)).expect("holds source");
            if load(&source) >= load(&target) + 2 {
                self.push(source, target, tokens);
                return true;
            }
        }
        false
    }

    fn search_from(&mut self, source: NodeId, shares: &[u32]) {
        self.search += 1;
        self.queue.clear();
        self.queue.push(source);
        self.node_seen[source.index()] = self.search;
        let mut visited = 0;
        while let Some(node) = self.queue.get(visited).copied() {
            visited += 1;
            for giver in self.placement.shared_on(node).iter().map(|copy| *copy as usize) {
                let expert = self.placement.owner[giver];
                let seen = &mut self.expert_seen[expert.index()];
                if shares[giver] == 0 || std::mem::replace(seen, self.search) == self.search {
                    continue;
                }
                for taker in self.placement.copies_of(expert) {
                    let next = self.placement.host[taker];
                    if self.node_seen[next.index()] != self.search {
                        self.node_seen[next.index()] = self.search;
                        self.reached_by[next.index()] = (giver, taker);
                        self.queue.push(next);
                    }
                }
            }
        }
    }

    /// Moves half the difference, or what the narrowest copy on the path has.
    fn push(&self, source: NodeId, target: NodeId, tokens: &mut TokenDispatch) {
        let load = |node: NodeId| tokens.node_loads[node.index()];
        let mut amount = u32::try_from((load(source) - load(target)) / 2).unwrap_or(u32::MAX);
        let back = |node: NodeId| {
            let (giver, taker) = self.reached_by[node.index()];
            (giver, taker, self.placement.host[giver])
        };
        let mut node = target;
        while node != source {
            let (giver, _, before) = back(node);
            amount = amount.min(tokens.shares[giver]);
            node = before;
        }
        node = target;
        while node != source {
            let (giver, taker, before) = back(node);
            tokens.shares[giver] -= amount;
            tokens.shares[taker] += amount;
            node = before;
        }
        tokens.node_loads[source.index()] -= u64::from(amount);
        tokens.node_loads[target.index()] += u64::from(amount);
    }
}
