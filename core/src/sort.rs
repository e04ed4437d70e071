//! Sorting in place. The standard library's is made for speed and takes 11 kB of flash; on a board this one does.

use crate::part::put;

/// Sorts by a strict order, in which items that are neither way before each other are equal in all bits.
pub(crate) fn sort<T: Copy>(items: &mut [T], before: impl Fn(T, T) -> bool) {
    if cfg!(target_os = "none") {
        heap_sort(items, before);
    } else {
        items.sort_unstable_by(|&a, &b| before(b, a).cmp(&before(a, b)));
    }
}

/// The same without recursion or memory: a heap with the last item on top, which gives up its tops from behind.
fn heap_sort<T: Copy>(items: &mut [T], before: impl Fn(T, T) -> bool) {
    let n = items.len();
    // First n / 2 subtrees become heaps, then n tops leave.
    for step in (0..n + n / 2).rev() {
        if step >= n {
            sift_down(items, step - n, &before);
        } else {
            items.swap(0, step);
            sift_down(items.get_mut(..step).unwrap_or_default(), 0, &before);
        }
    }
}

/// Restores a heap with the last on top, of which one item may be before its children.
pub(crate) fn sift_down<T: Copy>(heap: &mut [T], mut i: usize, before: impl Fn(T, T) -> bool) {
    while 2 * i + 1 < heap.len() {
        let children = (heap.get(2 * i + 1), heap.get(2 * i + 2));
        let second = matches!(children, (Some(&one), Some(&other)) if before(one, other));
        let child = 2 * i + 1 + usize::from(second);
        let (Some(&item), Some(&last)) = (heap.get(i), heap.get(child)) else { return };
        if !before(item, last) {
            return;
        }
        put(heap, i, last);
        put(heap, child, item);
        i = child;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn both_sort_as_the_standard_library_does(items in prop::collection::vec(0u16..60, 0..100)) {
            let mut expected = items.clone();
            expected.sort_unstable_by(|a, b| b.cmp(a));
            let (mut one, mut other) = (items.clone(), items);
            sort(&mut one, |a, b| a > b);
            heap_sort(&mut other, |a, b| a > b);
            prop_assert_eq!(&one, &expected);
            prop_assert_eq!(&other, &expected);
        }
    }
}
