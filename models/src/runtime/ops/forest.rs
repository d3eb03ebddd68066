//! A tree ensemble as flat arrays: checked once when it is built, walked without a branch that depends on the data.
//!
//! Owns the layout and the walk. Never reads ONNX (`tree` does) and never finishes a score (base values, averages and
//! post-transforms are `tree`'s and `post`'s).
//!
//! The two children of a node lie side by side, so a step is `low + 1 − (x ≤ threshold)`; a leaf has the threshold +∞ and
//! leads to itself, so that several trees are walked in lockstep until none moves. What the processor would wait for in one tree it
//! does in the others meanwhile. Every index is checked by [`Forest::build`]: each node has one parent, so a walk ends.
//!
//! Limits: a file's size bounds the nodes; node and leaf numbers are 32 bits.

use std::collections::HashSet;

/// Trees that are walked in lockstep; more would not stay in registers.
const LANES: usize = 8;

/// Bits of [`Node::info`] in a branch: a missing value takes the high child; the comparison is equality.
const NAN_HIGH: u32 = 1;
const EQUAL: u32 = 2;

/// How a branch compares its feature with its threshold; `Leaf` does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Leq,
    Lt,
    Gte,
    Gt,
    Eq,
    Neq,
    Leaf,
}

/// A node as the file gives it.
#[derive(Debug, Clone, Copy)]
pub(super) struct RawNode {
    pub(super) tree: i64,
    pub(super) id: i64,
    pub(super) mode: Mode,
    pub(super) feature: i64,
    pub(super) threshold: f64,
    pub(super) if_true: i64,
    pub(super) if_false: i64,
    pub(super) missing_is_true: bool,
}

/// What a leaf adds to a target, as the file gives it.
#[derive(Debug, Clone, Copy)]
pub(super) struct RawWeight {
    pub(super) tree: i64,
    pub(super) node: i64,
    pub(super) target: i64,
    pub(super) weight: f64,
}

/// How the leaves of all trees become one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aggregate {
    Sum,
    Min,
    Max,
}

#[derive(Debug, Clone, Copy)]
struct Node {
    /// The low child is taken for `x ≤ threshold`.
    threshold: f32,
    feature: u32,
    /// Position of the low child; the high one follows it. In a leaf its own position.
    low: u32,
    /// Flags of a branch, number of a leaf.
    info: u32,
}

/// The ensemble.
#[derive(Debug)]
pub(super) struct Forest {
    nodes: Vec<Node>,
    roots: Vec<u32>,
    /// Where each leaf's weights begin, and one past the last.
    leaf_weights: Vec<u32>,
    /// Target and weight.
    weights: Vec<(u32, f64)>,
    /// Weight by leaf when each has exactly one and there is one target.
    single: Option<Vec<f64>>,
    targets: usize,
    features: usize,
    /// A node compares for equality.
    equalities: bool,
}

/// What one row collected.
pub(super) struct Totals {
    /// By target.
    pub(super) total: Vec<f64>,
    /// Whether a leaf had something for the target.
    pub(super) seen: Vec<bool>,
}

impl Totals {
    pub(super) fn new(targets: usize) -> Totals {
        Totals { total: vec![0.0; targets], seen: vec![false; targets] }
    }
}

impl Forest {
    /// Lays the trees out.
    ///
    /// # Errors
    /// What is wrong, with tree and node: an unknown child, a node with two parents (every cycle has one), a feature, target or
    /// threshold that makes no sense, a node listed twice.
    pub(super) fn build(nodes: &[RawNode], weights: &[RawWeight], targets: usize) -> Result<Forest, String> {
        let raw = Raw::new(nodes, weights, targets)?;
        let mut forest = Forest {
            nodes: Vec::with_capacity(nodes.len()),
            roots: Vec::new(),
            leaf_weights: vec![0],
            weights: Vec::with_capacity(weights.len()),
            single: None,
            targets,
            features: 1,
            equalities: false,
        };
        let mut placed = vec![false; nodes.len()];
        for root in raw.roots() {
            forest.place_tree(&raw, root, &mut placed)?;
        }
        forest.single = forest.one_weight_by_leaf();
        Ok(forest)
    }

    /// Places the tree below `root`, level by level: what is read most lies together.
    fn place_tree(&mut self, raw: &Raw<'_>, root: usize, placed: &mut [bool]) -> Result<(), String> {
        let first = self.reserve()?;
        self.roots.push(first);
        let mut level = vec![(root, first as usize)];
        placed[root] = true;
        while !level.is_empty() {
            let mut next = Vec::new();
            for (from, at) in level {
                let node = &raw.nodes[from];
                if node.mode == Mode::Leaf {
                    self.nodes[at] = self.leaf(raw, node, at)?;
                    continue;
                }
                let low = self.reserve()?;
                self.reserve()?;
                let (branch, low_id, high_id) = self.branch(node, low)?;
                self.nodes[at] = branch;
                for (side, id) in [low_id, high_id].into_iter().enumerate() {
                    let child = raw.child(node, id)?;
                    if std::mem::replace(&mut placed[child], true) {
                        return Err(format!("node {id} of tree {} has two parents, or is its own ancestor", node.tree));
                    }
                    next.push((child, low as usize + side));
                }
            }
            level = next;
        }
        Ok(())
    }

    /// A place for a node; positions are 32 bits.
    fn reserve(&mut self) -> Result<u32, String> {
        let at = u32::try_from(self.nodes.len()).map_err(|_| "too many nodes".to_owned())?;
        self.nodes.push(Node { threshold: f32::INFINITY, feature: 0, low: at, info: 0 });
        Ok(at)
    }

    fn leaf(&mut self, raw: &Raw<'_>, node: &RawNode, at: usize) -> Result<Node, String> {
        let number = u32::try_from(self.leaf_weights.len() - 1).map_err(|_| "too many leaves".to_owned())?;
        for weight in raw.weights_of(node) {
            // Targets were checked against a `usize` that fits 32 bits.
            self.weights.push((weight.target as u32, weight.weight));
        }
        self.leaf_weights.push(u32::try_from(self.weights.len()).map_err(|_| "too many weights".to_owned())?);
        Ok(Node { threshold: f32::INFINITY, feature: 0, low: at as u32, info: number })
    }

    /// The node with its low child at `low`, and the ids of the low and the high child.
    fn branch(&mut self, node: &RawNode, low: u32) -> Result<(Node, i64, i64), String> {
        let feature = u32::try_from(node.feature)
            .map_err(|_| format!("node {} of tree {} reads feature {}", node.id, node.tree, node.feature))?;
        if node.threshold.is_nan() {
            return Err(format!("node {} of tree {} has no number as its threshold", node.id, node.tree));
        }
        self.features = self.features.max(feature as usize + 1);
        self.equalities |= matches!(node.mode, Mode::Eq | Mode::Neq);
        // `>` and `≥` are the opposite of `≤` and `<`: their true child is the high one.
        let (threshold, true_is_low) = match node.mode {
            Mode::Leq | Mode::Leaf => (at_most(node.threshold), true),
            Mode::Lt => (below(node.threshold), true),
            Mode::Gt => (at_most(node.threshold), false),
            Mode::Gte => (below(node.threshold), false),
            Mode::Eq => (exactly(node.threshold), true),
            Mode::Neq => (exactly(node.threshold), false),
        };
        // A NaN differs from everything; every other comparison with it is false.
        let nan_is_true = node.missing_is_true || node.mode == Mode::Neq;
        let equal = if matches!(node.mode, Mode::Eq | Mode::Neq) { EQUAL } else { 0 };
        let info = equal | if nan_is_true == true_is_low { 0 } else { NAN_HIGH };
        let (low_id, high_id) = if true_is_low { (node.if_true, node.if_false) } else { (node.if_false, node.if_true) };
        Ok((Node { threshold, feature, low, info }, low_id, high_id))
    }

    fn one_weight_by_leaf(&self) -> Option<Vec<f64>> {
        let one_each = self.weights.len() + 1 == self.leaf_weights.len()
            && self.leaf_weights.iter().enumerate().all(|(leaf, &begin)| leaf == begin as usize);
        (self.targets == 1 && one_each).then(|| self.weights.iter().map(|(_, weight)| *weight).collect())
    }

    /// How many features a row must have.
    pub(super) fn features(&self) -> usize {
        self.features
    }

    pub(super) fn targets(&self) -> usize {
        self.targets
    }

    pub(super) fn trees(&self) -> usize {
        self.roots.len()
    }

    /// Every weight with its target.
    pub(super) fn weights(&self) -> impl Iterator<Item = (u32, f64)> {
        self.weights.iter().copied()
    }

    /// Walks all trees for `row`, which has at least [`Forest::features`] numbers. Trees add up in the file's order, whatever is
    /// scored beside.
    pub(super) fn collect(&self, row: &[f32], aggregate: Aggregate, totals: &mut Totals) {
        totals.total.fill(0.0);
        totals.seen.fill(false);
        let plain = !self.equalities && !row.iter().any(|x| x.is_nan());
        for roots in self.roots.chunks(LANES) {
            let leaves = self.leaves(roots, row, plain);
            for &leaf in leaves.iter().take(roots.len()) {
                self.add(leaf, aggregate, totals);
            }
        }
    }

    /// The leaves that `row` reaches from up to [`LANES`] roots.
    fn leaves(&self, roots: &[u32], row: &[f32], plain: bool) -> [u32; LANES] {
        let mut at = [0; LANES];
        at.iter_mut().zip(roots).for_each(|(at, root)| *at = *root);
        if plain {
            loop {
                let mut moved = 0;
                for at in &mut at {
                    let node = &self.nodes[*at as usize];
                    let next = node.low + 1 - u32::from(row[node.feature as usize] <= node.threshold);
                    moved |= next ^ *at;
                    *at = next;
                }
                if moved == 0 {
                    break;
                }
            }
        } else {
            at.iter_mut().for_each(|at| *at = self.walk(*at, row));
        }
        at.map(|at| self.nodes[at as usize].info)
    }

    /// The walk for rows with missing values and for equalities.
    fn walk(&self, mut at: u32, row: &[f32]) -> u32 {
        loop {
            let node = &self.nodes[at as usize];
            if node.low == at {
                return at;
            }
            let x = row[node.feature as usize];
            let low = if x.is_nan() {
                node.info & NAN_HIGH == 0
            } else if node.info & EQUAL != 0 {
                x == node.threshold
            } else {
                x <= node.threshold
            };
            at = node.low + 1 - u32::from(low);
        }
    }

    fn add(&self, leaf: u32, aggregate: Aggregate, totals: &mut Totals) {
        let leaf = leaf as usize;
        if let (Some(single), Aggregate::Sum) = (&self.single, aggregate) {
            totals.total[0] += single[leaf];
            totals.seen[0] = true;
            return;
        }
        for &(target, weight) in &self.weights[self.leaf_weights[leaf] as usize..self.leaf_weights[leaf + 1] as usize] {
            let target = target as usize;
            let total = &mut totals.total[target];
            let first = !std::mem::replace(&mut totals.seen[target], true);
            *total = match aggregate {
                Aggregate::Sum => *total + weight,
                _ if first => weight,
                Aggregate::Min => total.min(weight),
                Aggregate::Max => total.max(weight),
            };
        }
    }
}

/// The file's lists, sorted for look-ups.
struct Raw<'a> {
    nodes: &'a [RawNode],
    /// Positions in `nodes`, by tree and id.
    by_id: Vec<usize>,
    /// By tree and node, otherwise in the file's order.
    weights: Vec<RawWeight>,
}

impl<'a> Raw<'a> {
    fn new(nodes: &'a [RawNode], weights: &[RawWeight], targets: usize) -> Result<Raw<'a>, String> {
        let key = |&at: &usize| (nodes[at].tree, nodes[at].id);
        let mut by_id: Vec<usize> = (0..nodes.len()).collect();
        by_id.sort_by_key(key);
        if let Some(pair) = by_id.windows(2).find(|pair| key(&pair[0]) == key(&pair[1])) {
            return Err(format!("node {} of tree {} is listed twice", nodes[pair[0]].id, nodes[pair[0]].tree));
        }
        let mut weights = weights.to_vec();
        weights.sort_by_key(|weight| (weight.tree, weight.node));
        let raw = Raw { nodes, by_id, weights };
        for weight in &raw.weights {
            let place = || format!("a weight of node {} of tree {}", weight.node, weight.tree);
            if !usize::try_from(weight.target).is_ok_and(|target| target < targets) {
                return Err(format!("{} is for target {}, and there are {targets}", place(), weight.target));
            }
            if !weight.weight.is_finite() {
                return Err(format!("{} is no finite number", place()));
            }
            if raw.find(weight.tree, weight.node).is_none() {
                return Err(format!("{} belongs to no node", place()));
            }
        }
        Ok(raw)
    }

    /// The first node that the file lists for each tree.
    fn roots(&self) -> impl Iterator<Item = usize> {
        let mut trees = HashSet::new();
        self.nodes.iter().enumerate().filter(move |(_, node)| trees.insert(node.tree)).map(|(at, _)| at)
    }

    fn find(&self, tree: i64, id: i64) -> Option<usize> {
        let found = self.by_id.binary_search_by_key(&(tree, id), |&at| (self.nodes[at].tree, self.nodes[at].id));
        found.ok().map(|at| self.by_id[at])
    }

    fn child(&self, parent: &RawNode, id: i64) -> Result<usize, String> {
        let missing = || format!("node {} of tree {} has the child {id}, which is not there", parent.id, parent.tree);
        self.find(parent.tree, id).ok_or_else(missing)
    }

    fn weights_of(&self, node: &RawNode) -> &[RawWeight] {
        let key = (node.tree, node.id);
        let begin = self.weights.partition_point(|weight| (weight.tree, weight.node) < key);
        let end = self.weights.partition_point(|weight| (weight.tree, weight.node) <= key);
        &self.weights[begin..end]
    }
}

/// The largest `f32` that is at most `t`: for every `f32` x, `x ≤ t` is `x ≤ at_most(t)`.
fn at_most(t: f64) -> f32 {
    let near = t as f32;
    if f64::from(near) > t { near.next_down() } else { near }
}

/// The largest `f32` below `t`; NaN, which nothing is at most, when there is none.
fn below(t: f64) -> f32 {
    if t == f64::NEG_INFINITY {
        return f32::NAN;
    }
    let near = t as f32;
    if f64::from(near) >= t { near.next_down() } else { near }
}

/// `t` as an `f32`; NaN, which nothing equals, when it is none.
fn exactly(t: f64) -> f32 {
    let near = t as f32;
    if f64::from(near) == t { near } else { f32::NAN }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn branch(tree: i64, id: i64, mode: Mode, threshold: f64, if_true: i64, if_false: i64) -> RawNode {
        RawNode { tree, id, mode, feature: 0, threshold, if_true, if_false, missing_is_true: false }
    }

    fn leaf(tree: i64, id: i64) -> RawNode {
        branch(tree, id, Mode::Leaf, 0.0, 0, 0)
    }

    fn stump(mode: Mode, threshold: f64, missing_is_true: bool) -> Forest {
        let mut nodes = [branch(0, 0, mode, threshold, 1, 2), leaf(0, 1), leaf(0, 2)];
        nodes[0].missing_is_true = missing_is_true;
        let weight = |node, weight| RawWeight { tree: 0, node, target: 0, weight };
        Forest::build(&nodes, &[weight(1, 1.0), weight(2, -1.0)], 1).unwrap()
    }

    fn score(forest: &Forest, x: f32) -> f64 {
        let mut totals = Totals::new(1);
        forest.collect(&[x], Aggregate::Sum, &mut totals);
        totals.total[0]
    }

    #[test]
    fn every_mode_compares_as_it_says() {
        // Just below, exactly at and just above the threshold, the infinities and NaN, for each comparison.
        let x = [f32::NEG_INFINITY, 0.5_f32.next_down(), 0.5, 0.5_f32.next_up(), f32::INFINITY, f32::NAN];
        type Compare = fn(f32, f32) -> bool;
        let modes: [(Mode, Compare); 6] = [
            (Mode::Leq, |x, t| x <= t),
            (Mode::Lt, |x, t| x < t),
            (Mode::Gte, |x, t| x >= t),
            (Mode::Gt, |x, t| x > t),
            (Mode::Eq, |x, t| x == t),
            (Mode::Neq, |x, t| x != t),
        ];
        for (mode, compare) in modes {
            for t in [0.5, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN] {
                for missing in [false, true] {
                    let forest = stump(mode, f64::from(t), missing);
                    for x in x {
                        let want = if compare(x, t) || (missing && x.is_nan()) { 1.0 } else { -1.0 };
                        assert_eq!(score(&forest, x), want, "{x} {mode:?} {t}, missing {missing}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_double_threshold_between_two_floats_separates_them() {
        // 0.1 as a double lies between two floats; no float equals it, and the comparison of each is that of doubles.
        for x in [0.1_f32, 0.1_f32.next_down(), 0.1_f32.next_up()] {
            let wide = f64::from(x);
            for (mode, want) in
                [(Mode::Leq, wide <= 0.1), (Mode::Lt, wide < 0.1), (Mode::Gt, wide > 0.1), (Mode::Eq, false)]
            {
                assert_eq!(score(&stump(mode, 0.1, false), x) > 0.0, want, "{x} {mode:?}");
            }
        }
    }

    #[test]
    fn a_broken_tree_is_refused_with_its_place() {
        // A cycle, a node that is its own child, a shared child, a missing child, a duplicate, a feature below 0, a threshold that
        // is no number, a weight for no target or no node: each error names what it is about.
        let refused = |nodes: &[RawNode], weights: &[RawWeight]| Forest::build(nodes, weights, 1).unwrap_err();
        let cycle = [branch(7, 0, Mode::Leq, 0.0, 1, 2), branch(7, 1, Mode::Leq, 0.0, 0, 2), leaf(7, 2)];
        assert_eq!(refused(&cycle, &[]), "node 0 of tree 7 has two parents, or is its own ancestor");
        assert!(refused(&[branch(7, 0, Mode::Leq, 0.0, 0, 0)], &[]).contains("its own ancestor"));
        assert!(refused(&[branch(7, 0, Mode::Leq, 0.0, 1, 1), leaf(7, 1)], &[]).contains("node 1 of tree 7"));
        assert!(refused(&[branch(7, 0, Mode::Leq, 0.0, 1, 2), leaf(7, 1)], &[]).contains("child 2"));
        // A child is looked for in its own tree only.
        assert!(refused(&[branch(7, 0, Mode::Leq, 0.0, 1, 2), leaf(7, 1), leaf(8, 2)], &[]).contains("child 2"));
        assert!(refused(&[leaf(7, 0), leaf(7, 0)], &[]).contains("listed twice"));
        let mut nodes = [branch(7, 0, Mode::Leq, f64::NAN, 1, 2), leaf(7, 1), leaf(7, 2)];
        assert!(refused(&nodes, &[]).contains("threshold"));
        nodes[0].threshold = 0.0;
        nodes[0].feature = -1;
        assert!(refused(&nodes, &[]).contains("feature -1"));
        let weight = |node, target, weight| [RawWeight { tree: 7, node, target, weight }];
        assert!(refused(&[leaf(7, 0)], &weight(0, 1, 1.0)).contains("target 1"));
        assert!(refused(&[leaf(7, 0)], &weight(0, -1, 1.0)).contains("target -1"));
        assert!(refused(&[leaf(7, 0)], &weight(3, 0, 1.0)).contains("node 3"));
        assert!(refused(&[leaf(7, 0)], &weight(0, 0, f64::INFINITY)).contains("finite"));
    }

    #[test]
    fn a_long_chain_of_branches_needs_no_stack() {
        // 100,000 branches below each other are built and walked without recursion.
        let deep = 100_000;
        let mut nodes: Vec<RawNode> =
            (0..deep).map(|at| branch(0, 2 * at, Mode::Leq, -1.0, 2 * at + 1, 2 * at + 2)).collect();
        nodes.extend((0..deep).map(|at| leaf(0, 2 * at + 1)));
        nodes.push(leaf(0, 2 * deep));
        let forest =
            Forest::build(&nodes, &[RawWeight { tree: 0, node: 2 * deep, target: 0, weight: 3.0 }], 1).unwrap();
        assert_eq!(score(&forest, 0.0), 3.0);
    }

    #[test]
    fn any_number_of_trees_adds_up() {
        // One tree, one short of a lane group, a whole group, one more: the sum is that of all trees.
        for trees in [1, LANES - 1, LANES, LANES + 1, 3 * LANES + 2] {
            let mut nodes = Vec::new();
            let mut weights = Vec::new();
            for tree in 0..trees as i64 {
                nodes.extend([branch(tree, 0, Mode::Leq, 0.5, 1, 2), leaf(tree, 1), leaf(tree, 2)]);
                weights.push(RawWeight { tree, node: 1, target: 0, weight: 1.0 });
                weights.push(RawWeight { tree, node: 2, target: 0, weight: 2.0 });
            }
            let forest = Forest::build(&nodes, &weights, 1).unwrap();
            assert_eq!(score(&forest, 0.0), trees as f64);
            assert_eq!(score(&forest, 1.0), 2.0 * trees as f64);
        }
    }
}
